"""What was read is planned for as it is, with the model's own numbers of the layers."""

import numpy as np

import isotherm as iso
from isotherm.traces import HeatHeader, HeatWriter


def test_a_file_of_heat_goes_straight_to_the_planner(tmp_path):
    rng = np.random.default_rng(0)
    shape, topology = iso.MoEShape(2, 8, 2, layer_ids=(3, 7)), iso.Topology(ranks=4, slots_per_rank=3)
    windows = [
        iso.HeatWindow(
            heat_KSLE=rng.integers(0, 99, (2, 1, 2, 8)),
            slot_load_LGS=None,
            slice_steps=(step, step + 4),
            tokens_K=np.array([50, 50]),
            layer_ids=(3, 7),
        )
        for step in (0, 4)
    ]
    with HeatWriter(tmp_path / "some.heat", HeatHeader.of(shape, topology)) as writer:
        for window in windows:
            writer.append(window)
    planned = iso.plan(iso.read_heat(tmp_path / "some.heat"), topology)
    assert planned.layer_ids == (3, 7)
    by_hand = iso.plan(sum(window.heat_LE for window in windows), topology)
    assert (planned.placement.slot_to_expert == by_hand.placement.slot_to_expert).all()
