"""The design that a public engine merged and took back: what this project exists not to be.

Heat collection and gathering on a side stream, as it was done there, written small so that its hazards
can be shown and its cost measured. Every remark below is a mistake that is kept on purpose. Nothing of
Isotherm uses it.
"""

from __future__ import annotations

import torch

from isotherm.heat.aside import DeviceGroup
from isotherm.streams import Backend


class RevertedHeat:
    """Counts per layer and local slot on a side stream, gathered over the ranks once per cycle.

    Args:
        layers, slots: the shape of this rank's loads.
        group: gathers over the ranks, on the stream that is current.
        backend: streams of the device.
        joins: main waits for the side in every layer, as it was. False: without that wait, which is
            all that keeps the engine's counts alive and the next read right.
    """

    def __init__(
        self, layers: int, slots: int, group: DeviceGroup, backend: Backend, *, joins: bool = True
    ) -> None:
        self._group = group
        self._backend = backend
        self._joins = joins
        self._side = backend.side_stream("moe_load")
        self._gather_buffer: torch.Tensor | None = None
        self.moe_load = [torch.zeros(slots, dtype=torch.int64, device=backend.device) for _ in range(layers)]

    def count(self, layer: int, expert_tokens_S: torch.Tensor, *, cumulative: bool = False) -> None:
        """Adds the tokens that this rank's slots received in one layer: two events and two waits."""
        main, side = self._backend.main_stream(), self._side
        side.wait_event(main.record_event())
        load_S = self.moe_load[layer]

        def add() -> None:
            counts_S = expert_tokens_S
            if cumulative:
                counts_S = torch.diff(expert_tokens_S, prepend=expert_tokens_S.new_zeros(1))
            # What `+=` becomes where a compiler captures it: a new tensor, at another address.
            self.moe_load[layer] = load_S + counts_S

        side.submit(add, reads=[load_S, expert_tokens_S])
        if self._joins:
            # No overlap: main does nothing meanwhile. And the engine may free its counts only because of it.
            main.wait_event(side.record_event())

    def gather(self) -> torch.Tensor:
        """Loads of all ranks, int64 [layers, ranks, slots] on the host. Blocks it."""
        # Read on main, whatever the side has still to write.
        load_LS = torch.stack(self.moe_load)
        layers, slots = load_LS.shape
        # Allocated anew for each gather.
        self._gather_buffer = None
        gathered_GLS = self._gather_buffer = load_LS.new_empty((self._group.size, layers, slots))
        landed: list[torch.Tensor] = []

        def work() -> None:
            self._group.all_gather(gathered_GLS.view(-1), load_LS.view(-1))
            landed.append(gathered_GLS.permute(1, 0, 2).cpu())

        # Nothing makes the side wait for the stack above.
        self._side.submit(work, reads=[load_LS], writes=[gathered_GLS])
        # The copy blocks the host. So does this, where work runs on a thread of its own.
        self._side.record_event().synchronize()
        return landed[0]

    def close(self) -> None:
        self._side.close()
