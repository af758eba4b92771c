"""What `warm_up` is for: while an engine serves, nothing compiles."""

import subprocess
import sys

PROGRAM = """
import numpy as np
from numba.core import event
import isotherm as iso
from isotherm import planner
from isotherm.decide import State, make_decision

planner.warm_up()
compiled = []

class Listener(event.Listener):
    def on_start(self, what):
        compiled.append(str(what.data["dispatcher"]))

    def on_end(self, what):
        pass

event.register("numba:compile", Listener())
topology, shape = iso.Topology(ranks=8, slots_per_rank=5), iso.MoEShape(4, 32, 4)
placement = iso.Placement.default(shape, topology)
rng = np.random.default_rng(0)
heat = (np.exp(rng.normal(0, 1, (2, 1, 4, 32))) * 1000).astype(int).repeat(2, axis=1)
total = heat.sum(axis=(0, 1))
actions = set()
for mode, empty, reads in (("full", False, False), ("shares", False, True), ("full", True, True)):
    content = placement.slot_to_expert.copy()
    if empty:
        content[0, 33] = iso.EMPTY
    served = iso.Placement(content, 32)
    config = iso.Config(mode=mode, max_imbalance=1.02, plan_life_steps=10**9)
    state = State(topology, config, served, served.even_shares(), settled=True, movable=True)
    for step in range(0, 24, 8):
        window = iso.HeatWindow(
            heat_KSLE=heat, slot_load_LGS=None, slice_steps=(step, step + 4, step + 8),
            tokens_K=np.ones(2, int), layer_ids=(0, 1, 2, 3),
            active_steps_LE=np.minimum(total, 8) if reads else None,
        )
        state, decision = make_decision(state, window, step + 8)
        actions.add(decision.action)
    planner.balanced_shares(window.heat_LE, served, topology)
for current in (None, placement):
    for shares in ("balanced", "even"):
        for slots in (5, 6) if current is None else (5,):
            iso.plan(total, iso.Topology(ranks=8, slots_per_rank=slots), current, shares=shares)
iso.plan(total, iso.Topology(ranks=17, slots_per_rank=2))
assert "moves" in actions, actions
assert not compiled, compiled
"""


def test_decisions_and_plans_after_warming_up_compile_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
