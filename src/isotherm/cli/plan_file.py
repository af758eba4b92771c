"""`isotherm plan`: from a file of heat to a placement file that an engine loads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from isotherm.bench.show import wide_console
from isotherm.cli.file_options import (
    InputFormat,
    PlacementFormat,
    as_text,
    imagined_topology,
    parse_layers,
    print_json,
    tell_assumed_layers,
    tell_notes,
    tracked,
)
from isotherm.cli.pictures import check_picture, draw_plan, write_picture
from isotherm.cli.plan_report import (
    PlanOutcome,
    of_kind,
    picture_plan,
    print_plan,
    report_plan,
    served_before,
)
from isotherm.config import Config
from isotherm.placement import Placement
from isotherm.planner.served.dispatch import Engine

if TYPE_CHECKING:
    from isotherm.traces import HeatTrace

_ENGINE_OF: dict[str, Engine] = {
    "isotherm": "isotherm",
    "sglang": "sglang",
    "vllm-ascend": "vllm-ascend",
    "tensorrt-llm": "tensorrt-llm",
    "deepseek": "vllm",  # whoever takes such arrays splits evenly too
}


@dataclass(frozen=True)
class PlanOptions:
    """Plans a placement for the heat in a file, and writes it for an engine to load.

    Examples:
        isotherm plan sample --out plan.npz --plot plan.html
        isotherm plan decode.heat --ranks 32 --nodes 4 --redundant 32 --format vllm-ascend --out map.json
        isotherm plan dump.pt --ranks 16 --redundant 16 --format sglang --out location.json
        isotherm plan decode.heat --ranks 32 --redundant 32 --current old.npz --max-moves 500 --out new.npz
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The heat: of any system that `isotherm inspect` reads."""
    out: Path
    """The placement file to write: it appears whole, or stays as it was."""
    ranks: int | None = None
    """Ranks of the expert-parallel group; those that the heat was collected on, where the file knows them."""
    nodes: int | None = None
    """Machines that the ranks are on, equally many on each."""
    redundant: Annotated[int | None, tyro.conf.arg(aliases=("--slots",))] = None
    """Slots beyond one for each expert, over all ranks."""
    format: PlacementFormat = "isotherm"
    """For whom to write."""
    engine: Engine | None = None
    """Who will serve by it, where it is not whom the format is of: decides how replicas split tokens."""
    policy: str = "incremental"
    """How to plan; `isotherm doctor` lists the policies."""
    current: Path | None = None
    """What the slots hold now: moves are counted from there, and kept few."""
    max_moves: int | None = None
    """With --current: slots that may change."""
    max_bytes: int | None = None
    """With --current and --expert-bytes: weights that may be copied, in bytes."""
    expert_bytes: int | None = None
    """With --max-bytes: the weights of one expert in one layer."""
    max_imbalance: float | None = None
    """With --current: layers at or below this stay as they are, under policies that start from it. Left out:
    1.03."""
    groups: int = 1
    """Expert groups to keep on one node each, for the policy deepseek."""
    kind: str | None = None
    """Plan for this kind of tokens alone, such as decode."""
    input_format: InputFormat | None = None
    """Whose file the heat is; found by what it holds where it is left out."""
    moe_layers: str | None = None
    """The model's numbers of the MoE layers, such as 3-60, where the file does not say."""
    model_layers: int | None = None
    """All layers of the model, dense ones too, where the file does not say. SGLang wants to know."""
    mtp_layers: int = 0
    """Layers for multi-token prediction behind the model's own; TensorRT-LLM wants a row for each."""
    plot: Path | None = None
    """Draw loads and imbalance before and after: a .png, or an .html that holds picture and tables."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as JSON on stdout."""


def run_plan(options: PlanOptions) -> int:
    """Plans and writes; the exit code 0.

    Raises:
        MissingExtraError: a picture is asked for and matplotlib is not installed.
        ValueError: the file or an option is not what it should be, or the placement cannot be written.
        PlanRefusedError: the policy's answer breaks an invariant.
    """
    from isotherm.traces import read_heat, write_placement

    check_picture(options.plot)
    _check_together(options)
    trace = read_heat(
        options.file,
        format=options.input_format,
        moe_layers=parse_layers(options.moe_layers),
        model_layers=options.model_layers,
    )
    tell_notes(trace.notes)
    outcome = _planned(trace, options)
    write_placement(
        outcome.planned,
        options.out,
        format=options.format,
        ranks=outcome.topology.ranks,
        model_layers=trace.header.model_layers,
        mtp_layers=options.mtp_layers,
    )
    tell_assumed_layers(options.format, trace.layer_ids, trace.header.model_layers)
    report = report_plan(outcome, options)
    if options.json:
        print_json(report)
    else:
        print_plan(report, outcome, options, wide_console())
    if options.plot is not None:
        figure = draw_plan(picture_plan(trace, outcome, options))
        text = as_text(lambda console: print_plan(report, outcome, options, console))
        write_picture(figure, options.plot, title=f"Plan for {options.file.name}", text=text)
    return 0


def _planned(trace: HeatTrace, options: PlanOptions) -> PlanOutcome:
    from isotherm.planner import plan
    from isotherm.traces.trace import SLICES

    topology = imagined_topology(
        trace.header, ranks=options.ranks, nodes=options.nodes, redundant=options.redundant
    )
    merged = trace.merged(slices=SLICES, track=partial(tracked, doing="reading"))
    window = of_kind(merged, trace, options.kind)
    current = None if options.current is None else _read_current(options.current, trace)
    engine = options.engine or _ENGINE_OF[options.format]
    planned = plan(
        window,
        topology,
        current,
        engine=engine,
        policy=options.policy,
        max_moves=options.max_moves,
        max_bytes=options.max_bytes,
        bytes_per_expert=options.expert_bytes,
        max_imbalance=Config.max_imbalance if options.max_imbalance is None else options.max_imbalance,
        groups=options.groups,
    )
    return PlanOutcome(window, topology, served_before(window, topology, current, engine), planned)


def _check_together(options: PlanOptions) -> None:
    if options.max_imbalance is not None and options.current is None:
        raise ValueError(
            "--max-imbalance says which layers stay as they are: give --current, or leave it out"
        )
    if options.max_moves is not None and options.current is None:
        raise ValueError(
            f"--max-moves {options.max_moves} counts from what is loaded: give --current, or leave it out"
        )
    if (options.max_bytes is None) != (options.expert_bytes is None):
        raise ValueError("--max-bytes and --expert-bytes go together: give both, or count in --max-moves")
    if options.max_bytes is not None and options.current is None:
        raise ValueError(
            f"--max-bytes {options.max_bytes} counts from what is loaded: give --current, or leave it out"
        )
    for name, other in (("the heat that is read", options.file), ("the picture", options.plot)):
        if other is not None and os.path.realpath(other) == os.path.realpath(options.out):
            raise ValueError(f"--out {options.out} would replace {name}: give another name")


def _read_current(path: Path, trace: HeatTrace) -> Placement:
    from isotherm.traces import read_placement

    # Of a file that numbers its layers they must be those of the heat.
    file = read_placement(path, moe_layers=trace.layer_ids)
    tell_notes(file.notes)
    return file.placement
