"""What the benchmark says of pairs that cross nodes."""

import numpy as np
import pytest

from isotherm.bench.plan_heat import read_heats
from isotherm.bench.route_locality import HELD_TO, cuts_of, measure_locality, source_heats
from isotherm.topology import Topology


def test_a_quick_run_reaches_its_targets_on_drawn_heat():
    section = measure_locality(read_heats(None).first_layers(1), quick=True)
    assert len(section.targets) == 8
    assert all(target.ok for target in section.targets)
    row = f"4 nodes alike, slack {HELD_TO:g}"
    cut, bound = (section.figure(row, column).value for column in ("cut", "bound"))
    assert section.figure(row, "of the bound").value == pytest.approx(cut / bound)
    assert section.figure(row, "crossing").value == pytest.approx(75 * (1 - cut / 100))


def test_nodes_that_serve_two_kinds_send_as_many_tokens():
    heats = read_heats(None).first_layers(2)
    source = source_heats(heats, 4, alike=False)
    assert source.sum(axis=2) == pytest.approx(np.tile(heats.first.sum(axis=1) / 4, (4, 1)))
    assert (source[0] == source[2]).all()
    assert not np.allclose(source[0], source[1])


def test_more_slack_gives_up_more_and_spares_no_less():
    heats = read_heats(None).first_layers(1)
    topology = Topology.for_model(experts=256, redundant=16, ranks=16, nodes=2)
    tight, loose = cuts_of(source_heats(heats, 2, alike=True), topology, (0.0, 0.01))
    assert tight.blind == loose.blind == pytest.approx(0.5)
    assert loose.bound <= loose.found < tight.found < 0.5
    assert tight.given_up <= 1e-6 < loose.given_up <= 0.01 + 1e-6
