"""Programs that drive Isotherm's own code on the simulated device, each against a plain count.

What another schedule must not change, they assert: the counts of every window, the expert of every slot
that a token was mapped to, the weights in every slot that is used, and that no call made the host wait.
"""

from __future__ import annotations

from isotherm.testing.programs.heat import heat_from_ids, heat_from_received, heat_gathered_on_the_device
from isotherm.testing.programs.moving import (
    weights_are_taken_up_by_word,
    weights_between_devices,
    weights_between_ranks,
    weights_move_while_used,
)
from isotherm.testing.programs.routing import (
    tables_change_under_a_captured_graph,
    tables_change_while_routing,
)

PROGRAMS = (
    heat_from_ids,
    heat_from_received,
    heat_gathered_on_the_device,
    tables_change_while_routing,
    tables_change_under_a_captured_graph,
    weights_move_while_used,
    weights_are_taken_up_by_word,
    weights_between_ranks,
    weights_between_devices,
)
"""Every program, for ``python -m isotherm.testing.explore`` and for the tests."""
