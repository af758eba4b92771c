"""Our moves beside the fewest there can be: a mixed-integer program for each layer of a fixed sample.

    python benchmarks/optimum.py --traces FOLDER --seconds 120

FOLDER as for `isotherm bench plan`; without it, heat is drawn. HiGHS is asked for fewer copies than ours, for
so many seconds a layer, and says how few it found and how many it proved to be needed: as many as ours where
it proves that there are no fewer, which takes far less than to find the optimum without a limit. Shares are
free in the program, as they are in ours. Takes minutes; with few seconds the proven figures are low.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, eye_array, hstack, kron, vstack

import isotherm as iso
from isotherm.bench.plan_heat import read_heats

SAMPLE = (0, 13, 26, 39, 52)
"""The layers that are solved."""
INFEASIBLE = 2
"""What `scipy.optimize.milp` tells where it proved that there is no way."""


@dataclass(frozen=True)
class Optimum:
    """Copies that HiGHS found, fewer than it was given, and that it proved to be needed. ``found`` is -1
    where it found no way."""

    found: int
    proven: int


def fewest_copies(
    heat_E: np.ndarray, start_P: np.ndarray, ranks: int, peak: float, below: int, seconds: float
) -> Optimum:
    """The fewest pairs of rank and expert that ``start_P`` lacks, fewer than ``below``, in any placement
    under which some shares keep every rank at or below ``peak``, in the unit of heat."""
    experts, size = len(heat_E), len(start_P) // ranks
    held_EG = np.zeros((experts, ranks))
    held_EG[start_P[start_P >= 0], np.flatnonzero(start_P >= 0) // size] = 1
    pairs = experts * ranks
    most_EG = np.repeat(np.minimum(heat_E, peak), ranks)
    # Columns: does the rank hold the expert, then what it gets of its heat; both [experts, ranks] in a row.
    of_expert = kron(eye_array(experts), np.ones((1, ranks)))
    of_rank = kron(np.ones((1, experts)), eye_array(ranks))
    holds, gets = eye_array(pairs), eye_array(pairs)
    none_E, none_G = csr_matrix((experts, pairs)), csr_matrix((ranks, pairs))
    rows = vstack(
        [
            hstack([of_expert, none_E]),
            hstack([of_rank, none_G]),
            hstack([none_E, of_expert]),
            hstack([none_G, of_rank]),
            hstack([holds.multiply(-most_EG[:, None]), gets]),
            csr_matrix(np.concatenate([1 - held_EG.ravel(), np.zeros(pairs)])[None]),
        ]
    )
    lowest = np.concatenate(
        [np.ones(experts), np.zeros(ranks), heat_E, np.zeros(ranks), np.full(pairs + 1, -np.inf)]
    )
    highest = np.concatenate(
        [
            np.full(experts, ranks),
            np.full(ranks, size),
            heat_E,
            np.full(ranks, peak),
            np.zeros(pairs),
            [below - 1],
        ]
    )
    solved = milp(
        np.concatenate([1 - held_EG.ravel(), np.zeros(pairs)]),
        integrality=np.repeat([1, 0], pairs),
        bounds=Bounds(0, np.concatenate([np.ones(pairs), most_EG])),
        constraints=LinearConstraint(rows.tocsr(), lowest, highest),
        options={"time_limit": seconds, "mip_rel_gap": 0},
    )
    if solved.status == INFEASIBLE:
        return Optimum(-1, below)
    found = -1 if solved.x is None else round(solved.fun)
    return Optimum(found, math.ceil((solved.mip_dual_bound or 0.0) - 1e-6))


def new_pairs(start_P: np.ndarray, goal_P: np.ndarray, ranks: int) -> int:
    """Pairs of rank and expert in ``goal_P`` that ``start_P`` lacks."""
    sets = [
        {(slot * ranks // len(row), expert) for slot, expert in enumerate(row.tolist()) if expert >= 0}
        for row in (start_P, goal_P)
    ]
    return len(sets[1] - sets[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="folder of trace files; default: drawn heat")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each layer")
    parser.add_argument("--ranks", type=int, default=32, help="with as many redundant slots")
    parser.add_argument("--balancedness", type=float, default=0.97, help="what every layer must reach")
    parser.add_argument("--layers", type=int, nargs="*", default=SAMPLE)
    arguments = parser.parse_args()
    heats = read_heats(arguments.traces)
    decode, prefill = heats.first, heats.far
    ranks = arguments.ranks
    topology = iso.Topology.for_model(experts=decode.shape[1], redundant=ranks, ranks=ranks)
    start = iso.plan(decode, topology, shares="even").placement.slot_to_expert
    ours = iso.plan(prefill, topology, start, max_imbalance=1 / arguments.balancedness)
    print(f"decode to prefill, EP{ranks}+{ranks}, every layer to {arguments.balancedness}: copies")
    print("layer  ours  found  proven  ours / proven")
    for layer in arguments.layers:
        heat_E = prefill[layer] / prefill[layer].sum() * ranks
        moved = new_pairs(start[layer], ours.placement.slot_to_expert[layer], ranks)
        peak = 1 / arguments.balancedness
        best = fewest_copies(heat_E, start[layer], ranks, peak, moved, arguments.seconds)
        ratio = f"{moved / best.proven:.2f}" if best.proven else "-"
        print(f"{layer:5}  {moved:4}  {best.found:5}  {best.proven:6}  {ratio:>13}", flush=True)


if __name__ == "__main__":
    main()
