"""What the demo found, from what every rank recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.decide import Decision
from isotherm.demo.engine import PassRecord, RankRecord, StockCheck
from isotherm.status import Served
from isotherm.topology import Topology
from isotherm.window import HeatWindow, overall_imbalance


@dataclass(frozen=True)
class Phase:
    """A span of steps and what it was like.

    ``imbalance`` is the hottest rank of each layer over the mean, of what was really computed;
    ``step_ms`` the time of a step on a machine with one device per rank; ``hottest_expert_ms`` the
    expert CPU time of the hottest rank, as measured; each a mean over the steps.
    """

    name: str
    first_step: int
    steps: int
    imbalance: float
    step_ms: float
    hottest_expert_ms: float


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything the table, the picture and the JSON show.

    ``load_NGL`` is int64 [steps, ranks, layers], pairs that each rank computed; ``off_load_NGL`` the same
    with balancing off. ``served`` explains the imbalance of the last window.
    """

    topology: Topology
    kinds: tuple[str, ...]
    shift: int | None
    load_NGL: Int64Array
    off_load_NGL: Int64Array
    phases: tuple[Phase, ...]
    windows: tuple[HeatWindow, ...]
    decisions: tuple[Decision, ...]
    publications: tuple[int, ...]
    served: Served | None
    plans: int
    moves: int
    moved_bytes: int
    waits: int
    isotherm_ms: float
    isotherm_ms_p99: float
    tokens: int
    wrong_logits: tuple[tuple[int, int], ...]
    stock: StockCheck
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every answer was right."""
        return not self.wrong_logits and not self.stock.beyond

    def as_dict(self) -> dict[str, Any]:
        """The result for programs; see docs/demo.md."""
        return {
            "ok": self.ok,
            "ranks": self.topology.ranks,
            "slots_per_rank": self.topology.slots_per_rank,
            "kinds": list(self.kinds),
            "shift_step": self.shift,
            "phases": [asdict(phase) for phase in self.phases],
            "imbalance_by_step": [round(float(v), 6) for v in step_imbalance(self.load_NGL)],
            "imbalance_by_step_off": [round(float(v), 6) for v in step_imbalance(self.off_load_NGL)],
            "windows": [
                {
                    "first_step": window.start_step,
                    "end_step": window.end_step,
                    "tokens": int(window.tokens_K.sum()),
                    "imbalance": overall_imbalance(window.load_LG),
                }
                for window in self.windows
            ],
            "decisions": [
                {"step": each.step, "action": each.action, "reason": each.reason} for each in self.decisions
            ],
            "publications": list(self.publications),
            "last_window": None if self.served is None else asdict(self.served),
            "plans": self.plans,
            "moves": self.moves,
            "moved_bytes": self.moved_bytes,
            "waits": self.waits,
            "isotherm_ms_per_step": self.isotherm_ms,
            "isotherm_ms_per_step_p99": self.isotherm_ms_p99,
            "tokens": self.tokens,
            "steps": len(self.load_NGL),
            "wrong_logits": [list(each) for each in self.wrong_logits],
            "stock": asdict(self.stock),
            "seconds": self.seconds,
        }


def step_imbalance(load_NGL: Int64Array) -> FloatArray:
    """Overall imbalance of each step, float64 [steps]."""
    return np.array([overall_imbalance(load_GL.T) for load_GL in load_NGL])


def wrong_logits(on: Sequence[RankRecord], off: Sequence[RankRecord]) -> tuple[tuple[int, int], ...]:
    """The (step, rank) whose logits are not equal bit for bit."""
    return tuple(
        (step, rank)
        for rank, (ours, theirs) in enumerate(zip(on, off, strict=True))
        for step, (a, b) in enumerate(zip(ours.digests, theirs.digests, strict=True))
        if a != b
    )


def find_phases(
    ranks: Sequence[RankRecord],
    publications: Sequence[int],
    moved: int | None,
    shift: int | None,
    end: int,
    window: int,
) -> tuple[Phase, ...]:
    """The moments that the table compares, as far as the run has them.

    Before balancing: until the first tables change. Balanced: the last ``window`` steps before the shift.
    Just after the shift: until the next change. New shares: from there until weights have ``moved`` for the
    first time since, where that came later. Answered: the last ``window`` steps before ``end``. Neither of
    the second and last begins before the change it speaks of.
    """
    shift = end if shift is None else shift
    early = [step for step in publications if 0 < step < shift]
    late = [step for step in publications if shift < step < end]
    spans = [("before balancing", 0, min(early, default=shift))]
    if early:
        spans.append(("balanced", max(early[0], shift - window), shift))
    if shift < end:
        spans.append(("just after the shift", shift, min(late, default=end)))
    if late and moved is not None and late[0] < moved < end:
        spans.append(("new shares alone", late[0], moved))
    if late:
        answered = late[0] if moved is None else max(late[0], moved)
        spans.append(("shift answered", max(answered, end - window), end))
    return tuple(_phase(name, ranks, first, behind) for name, first, behind in spans)


def first_moved(
    decisions: Sequence[Decision], publications: Sequence[int], shift: int | None, end: int
) -> int | None:
    """The step from which tables first use weights that moved because of the shift: the second change of
    tables after that was decided, since the first retires the slots, and gives the others new shares."""
    if shift is None:
        return None
    for decision in decisions:
        if decision.action == "moves" and decision.step > shift:
            changes = [step for step in publications if decision.step <= step < end]
            if len(changes) > 1:
                return changes[1]
    return None


def _phase(name: str, ranks: Sequence[RankRecord], first: int, behind: int) -> Phase:
    load_NGL = np.stack([rank.received_NL for rank in ranks], axis=1)
    expert_NG = np.stack([rank.expert_seconds_N for rank in ranks], axis=1)
    forward_NG = np.stack([rank.forward_seconds_N for rank in ranks], axis=1)
    span = slice(first, behind)
    seconds_per_pair = expert_NG.sum() / max(load_NGL.sum(), 1)
    hottest_N = load_NGL[span].max(axis=1).sum(axis=1) * seconds_per_pair
    rest = float((forward_NG - expert_NG).mean())
    # Each layer of each step waits for its own hottest rank.
    load_MG = load_NGL[span].transpose(0, 2, 1).reshape(-1, load_NGL.shape[1])
    return Phase(
        name=name,
        first_step=first,
        steps=behind - first,
        imbalance=overall_imbalance(load_MG),
        step_ms=1e3 * (rest + float(hottest_N.mean())),
        hottest_expert_ms=1e3 * float(expert_NG[span].max(axis=1).mean()),
    )


def build_result(
    topology: Topology,
    kinds: tuple[str, ...],
    shifts: tuple[int, ...],
    on: PassRecord,
    on_ranks: Sequence[RankRecord],
    off_ranks: Sequence[RankRecord],
    stock: StockCheck,
    *,
    window: int,
    tokens: int,
    seconds: float,
) -> DemoResult:
    """Puts together what rank 0 gathered."""
    publications = tuple(tables.step for tables in on.tables if tables.epoch)
    load_NGL = np.stack([rank.received_NL for rank in on_ranks], axis=1)
    shift, end = shifts[0] if shifts else None, shifts[1] if len(shifts) > 1 else len(load_NGL)
    moved = first_moved(on.decisions, publications, shift, end)
    isotherm_N = np.stack([rank.isotherm_seconds_N for rank in on_ranks]).max(axis=0)
    return DemoResult(
        topology=topology,
        kinds=kinds,
        shift=shift,
        load_NGL=load_NGL,
        off_load_NGL=np.stack([rank.received_NL for rank in off_ranks], axis=1),
        phases=find_phases(on_ranks, publications, moved, shift, end, window),
        windows=on.windows,
        decisions=on.decisions,
        publications=publications,
        served=on.rank.statistics.served,
        plans=on.rank.statistics.plans,
        moves=on.rank.statistics.moves,
        moved_bytes=sum(rank.statistics.moved_bytes for rank in on_ranks),
        waits=sum(rank.statistics.waits for rank in on_ranks),
        isotherm_ms=1e3 * float(np.median(isotherm_N)),
        isotherm_ms_p99=1e3 * float(np.percentile(isotherm_N, 99)),
        tokens=tokens,
        wrong_logits=wrong_logits(on_ranks, off_ranks),
        stock=stock,
        seconds=seconds,
    )
