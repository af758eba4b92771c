"""How an engine's author proves an integration: every order of a simulated device, and a detector of races.

    python examples/prove_integration.py           # passes every schedule
    python examples/prove_integration.py --wrong   # reuses a buffer that it handed over: a finding, exit 1

The engine here counts, in each layer, the tokens that its slots received, and hands the counts over. Nothing
in it is mocked: `HeatCollector` is the real one, and what the engine does with torch is enqueued on the
simulated device as it would be on a real one.
"""

from __future__ import annotations

import argparse
import sys

import torch

import isotherm as iso
from isotherm.testing.explore import ScheduleError, run_under
from isotherm.testing.schedules import ordinary_schedules
from isotherm.testing.simulated import Simulation

SHAPE = iso.MoEShape(layers=2, experts=4, top_k=2)
TOPOLOGY = iso.Topology(ranks=1, slots_per_rank=6)
STEPS = 4


def engine(simulation: Simulation, *, is_wrong: bool) -> None:
    """A few forward passes. Called once for each schedule."""
    collector = iso.HeatCollector(
        SHAPE, TOPOLOGY, None, source="received", window_steps=2, backend=simulation.backend
    )
    with torch.inference_mode():
        for step in range(STEPS):
            for layer in range(SHAPE.layers):
                received_S = torch.arange(6, device=simulation.device) + step
                collector.count(layer, received_S, borrowed=False)
                if is_wrong:
                    received_S.zero_()  # the engine's own no more: it was handed over
            collector.end_step(num_tokens=15)
        simulation.finish()
    collector.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wrong", action="store_true", help="reuse a buffer that was handed over")
    parser.add_argument("--schedules", type=int, default=200)
    arguments = parser.parse_args()

    def program(simulation: Simulation) -> None:
        engine(simulation, is_wrong=arguments.wrong)

    try:
        number = run_under(program, ordinary_schedules(range(arguments.schedules)))
    except ScheduleError as error:
        print(error)
        return 1
    print(f"{number} schedules: no race, no memory freed too early, no undeclared access")
    return 0


if __name__ == "__main__":
    sys.exit(main())
