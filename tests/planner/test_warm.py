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
rng = np.random.default_rng(0)
topology, shape = iso.Topology(ranks=8, slots_per_rank=5), iso.MoEShape(4, 32, 4)
placement = iso.Placement.default(shape, topology)
heat = (np.exp(rng.normal(0, 1, (2, 2, 4, 32))) * 1000).astype(int)
window = iso.HeatWindow(
    heat_KSLE=heat, slot_load_LGS=None, slice_steps=(0, 4, 8),
    tokens_K=np.ones(2, int), layer_ids=(0, 1, 2, 3),
)
actions = set()
for mode, moved in (("full", False), ("shares", False), ("full", True)):
    content = placement.slot_to_expert.copy()
    if moved:
        content[0, 33] = iso.EMPTY
    served = iso.Placement(content, 32)
    state = State(topology, iso.Config(mode=mode, max_imbalance=1.02, min_gain=0.01), served,
                  served.even_shares(), settled=True, movable=True)
    actions.add(make_decision(state, window, 8)[1].action)
    planner.balanced_shares(window.heat_LE, served, topology)
assert "moves" in actions, actions
assert not compiled, compiled
"""


def test_decisions_after_warming_up_compile_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
