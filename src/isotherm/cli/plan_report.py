"""What a plan brings: as a table, as JSON, as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from isotherm.arrays import FloatArray
from isotherm.cli.file_options import tracked, unknown_kind
from isotherm.cli.pictures import PlanPicture
from isotherm.placement import Placement, Plan, rank_loads
from isotherm.planner.served.dispatch import Engine, rule_of, served_shares, source_parts
from isotherm.replay.windows import continued
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow, ImbalanceSummary, overall_imbalance

if TYPE_CHECKING:
    from isotherm.cli.plan_file import PlanOptions
    from isotherm.traces import HeatTrace


@dataclass(frozen=True, eq=False)
class PlanOutcome:
    """What was planned for and what came of it. ``before``: a placement and the shares it is served with."""

    window: HeatWindow
    topology: Topology
    before: tuple[Placement, FloatArray]
    planned: Plan

    @property
    def after(self) -> tuple[Placement, FloatArray]:
        return self.planned.placement, self.planned.shares


def of_kind(window: HeatWindow, trace: HeatTrace, kind: str | None) -> HeatWindow:
    """The window; of one kind of tokens where that is named."""
    kinds = trace.header.kinds
    if kind is None:
        return window
    if kind not in kinds:
        raise unknown_kind(kind, kinds)
    index = kinds.index(kind)
    return HeatWindow(
        heat_KSLE=window.heat_KSLE[index : index + 1],
        slot_load_LGS=None,
        slice_steps=window.slice_steps,
        tokens_K=window.tokens_K[index : index + 1],
        layer_ids=window.layer_ids,
    )


def served_before(
    window: HeatWindow, topology: Topology, current: Placement | None, engine: Engine
) -> tuple[Placement, FloatArray]:
    """The current placement, or slot ``p`` with expert ``p % E``, as the engine serves it."""
    layers, experts = window.heat_LE.shape
    before = Placement.default(MoEShape(layers, experts, 1), topology) if current is None else current
    split = rule_of(engine).split
    if split is None:
        return before, before.even_shares()
    source_LEN = source_parts(None, (layers, experts), topology.nodes)
    return before, served_shares(before, topology, split, source_LEN)


def report_plan(outcome: PlanOutcome, options: PlanOptions) -> dict[str, Any]:
    window, topology, planned = outcome.window, outcome.topology, outcome.planned
    loads = {
        "before": rank_loads(window.heat_LE, *outcome.before, topology),
        "after": rank_loads(window.heat_LE, *outcome.after, topology),
    }
    return {
        "out": str(options.out),
        "format": options.format,
        "ranks": topology.ranks,
        "slots": topology.slots,
        "policy": options.policy,
        "reason": planned.reason,
        "moves": len(planned.moves),
        "imbalance": {
            name: asdict(ImbalanceSummary.of(load_LG, window.layer_ids)) for name, load_LG in loads.items()
        },
        "bound": {"worst": float(planned.bound.max()), "mean": float(planned.bound.mean())},
    }


def picture_plan(trace: HeatTrace, outcome: PlanOutcome, options: PlanOptions) -> PlanPicture:
    """Reads every window again, for its imbalance with either placement."""
    window, topology = outcome.window, outcome.topology
    served = (outcome.before, outcome.after)
    steps: list[int] = []
    imbalances: tuple[list[float], list[float]] = ([], [])
    for each in continued(tracked(trace, "drawing")):
        steps.append(each.end_step)
        heat_LE = of_kind(each, trace, options.kind).heat_LE
        for series, (placement, shares_LP) in zip(imbalances, served):
            series.append(overall_imbalance(rank_loads(heat_LE, placement, shares_LP, topology)))
    before_LG, after_LG = (rank_loads(window.heat_LE, *each, topology) for each in served)
    return PlanPicture(
        title=f"{options.file.name}: {topology.ranks} ranks, {topology.slots} slots, {options.policy}",
        heat_LE=window.heat_LE,
        layer_ids=window.layer_ids,
        before_LG=before_LG,
        after_LG=after_LG,
        bound_L=outcome.planned.bound,
        steps=steps,
        before_N=imbalances[0],
        after_N=imbalances[1],
    )


def print_plan(report: dict[str, Any], outcome: PlanOutcome, options: PlanOptions, console: Console) -> None:
    table = Table(title="Imbalance: hottest rank over the mean", title_justify="left")
    for name in ("", "overall", "p50", "p95", "worst", "in layer"):
        table.add_column(name, justify="right")
    names = {"before": "before" if options.current is None else "current", "after": "planned"}
    for name, title in names.items():
        summary = report["imbalance"][name]
        numbers = (f"{summary[key]:.3f}" for key in ("overall", "p50", "p95", "worst"))
        table.add_row(title, *numbers, str(summary["worst_layer"]))
    console.print(table)
    console.print(
        f"{report['reason']}; the mean over layers cannot fall under {report['bound']['mean']:.3f}",
        markup=False,
        soft_wrap=True,
    )
    slots = outcome.planned.placement.slots
    console.print(
        f"{options.out}: {options.format}, {outcome.planned.placement.layers} layers of {slots} slots on "
        f"{outcome.topology.ranks} ranks",
        markup=False,
        soft_wrap=True,
    )
