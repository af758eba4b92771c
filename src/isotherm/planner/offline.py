"""The planner for people with numbers in hand: arrays in, a plan out."""

from __future__ import annotations

import os
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from isotherm.arrays import Int64Array
from isotherm.placement import Placement, Plan
from isotherm.planner.assemble import make_plan
from isotherm.planner.request import PlanRequest, ShareRule
from isotherm.planner.served.dispatch import Engine as Engine
from isotherm.planner.served.dispatch import rule_of
from isotherm.topology import Topology


class NamedHeat(Protocol):
    """Heat that knows the model's own numbers of its layers."""

    @property
    def heat_LE(self) -> Int64Array: ...

    @property
    def layer_ids(self) -> tuple[int, ...]: ...


def plan(
    heat: ArrayLike | NamedHeat,
    topology: Topology,
    current: Placement | ArrayLike | None = None,
    *,
    engine: Engine | None = None,
    policy: str = "incremental",
    shares: ShareRule | None = None,
    max_imbalance: float = 1.03,
    max_moves: int | None = None,
    max_bytes: int | None = None,
    min_gain_per_move: float = 0.0,
    source_heat: ArrayLike | None = None,
    locality_slack: float | None = None,
    bytes_per_expert: int | None = None,
    groups: int = 1,
) -> Plan:
    """Plans where experts and their replicas go, and what share of its expert's tokens each receives.

    Args:
        heat: tokens per expert, [layers, experts] in any unit; or a window, or what `read_heat` read, whose
            layer numbers the plan keeps, and whose slices of time policy ``"flash"`` looks at.
        topology: ranks and slots.
        current: what the slots hold now, integers [layers, slots], -1 for an empty one. None: nothing is
            loaded yet, so moves are free, none are listed, and layers are brought as low as the search can.
        engine: who will route by the plan; None: Isotherm. Another engine's own rule of dispatch decides what
            each replica receives: policy ``"incremental"`` searches for the balance that it will give, and
            the plan's shares, imbalance and reason tell of that.
        policy: `isotherm.planner.policies()` names them.
        shares: ``"balanced"`` or ``"even"``; None: what the engine can do.
        max_imbalance: with ``current``, layers at or below this stay as they are.
        max_moves: slots that may change, over all layers.
        max_bytes: the same in bytes, with ``bytes_per_expert``, the weights of one expert in one layer.
        source_heat: heat by the node that the tokens come from, [nodes, layers, experts], which adds up to
            ``heat``; None: what a window tells, or equally much from each.
        locality_slack: balancedness that each layer may give up so that fewer (token, expert) pairs cross
            nodes, where dispatch fills what a node gets with the node's own tokens first; None: none.
        groups: expert groups to keep on one node each (policy ``"deepseek"``).

    Deterministic. Searches layers side by side, on as many threads as there are cores.

    Raises:
        ValueError: input that is not what it should be; the message names layer, value and rule.
        PlanRefusedError: the policy's answer breaks an invariant.
    """
    layer_ids: tuple[int, ...] | None = getattr(heat, "layer_ids", None)
    heat_LE: np.ndarray = np.asarray(heat) if layer_ids is None else cast(NamedHeat, heat).heat_LE
    if current is not None and not isinstance(current, Placement):
        current = Placement(np.asarray(current), heat_LE.shape[-1])
    source = _source_heat(heat, heat_LE, topology, source_heat, wanted=locality_slack is not None)
    request = PlanRequest(
        heat_LE=heat_LE,
        topology=topology,
        current=current,
        max_imbalance=1.0 if current is None else max_imbalance,
        max_moves=_moves_within(max_moves, max_bytes, bytes_per_expert),
        min_gain_per_move=min_gain_per_move,
        shares=shares or ("balanced" if rule_of(engine or "isotherm").split is None else "even"),
        groups=groups,
        threads=os.cpu_count() or 1,
        heat_SLE=getattr(heat, "heat_SLE", None),
        engine=engine or "isotherm",
        source_heat_NLE=source,
        locality_slack=locality_slack,
    )
    return make_plan(request, policy=policy, layer_ids=layer_ids)


def _source_heat(
    heat: ArrayLike | NamedHeat,
    heat_LE: np.ndarray,
    topology: Topology,
    given: ArrayLike | None,
    *,
    wanted: bool,
) -> np.ndarray | None:
    """What is known of where tokens come from; equal parts where nothing is and something is ``wanted``."""
    if given is not None:
        source_NLE = np.asarray(given)
        if source_NLE.ndim == 3 and not np.allclose(source_NLE.sum(axis=0), heat_LE):
            raise ValueError(
                "source_heat does not add up, over its nodes, to heat: give heat of the same span"
            )
        return source_NLE
    known: np.ndarray | None = getattr(heat, "source_heat_NLE", None)
    if known is None and wanted:
        return np.stack([heat_LE / topology.nodes] * topology.nodes)
    return known


def _moves_within(max_moves: int | None, max_bytes: int | None, bytes_per_expert: int | None) -> int | None:
    if (max_bytes is None) != (bytes_per_expert is None):
        raise ValueError(
            f"max_bytes={max_bytes} and bytes_per_expert={bytes_per_expert} go together: give both, or "
            "count in max_moves"
        )
    if max_bytes is None or bytes_per_expert is None:
        return max_moves
    if max_bytes < 0 or bytes_per_expert < 1:
        raise ValueError(
            f"max_bytes={max_bytes} must not be negative, bytes_per_expert={bytes_per_expert} not below 1"
        )
    affordable = max_bytes // bytes_per_expert
    return affordable if max_moves is None else min(affordable, max_moves)
