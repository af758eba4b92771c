"""`isotherm synth`: heat that nobody measured, in a heat file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from isotherm.bench.show import wide_console
from isotherm.cli.file_options import InputFormat, parse_layers, print_json, tracked
from isotherm.traces.synthesis import HeatSpec

if TYPE_CHECKING:
    from isotherm.traces import HeatTrace
    from isotherm.traces.synthesis_check import Statistic


@dataclass(frozen=True)
class SynthOptions:
    """Makes a heat file of heat that nobody measured, as uneven, drifting and noisy as is asked.

    Prints what came out beside what was asked for. The defaults are a model of DeepSeek-V3's shape whose
    traffic changes halfway.

    Examples:
        isotherm synth some.heat --scenario alternating --period 8 --cosine 0.8
        isotherm synth some.heat --gini 0.35 --max-over-mean 5.6 --moe-layers 3-60 --model-layers 61
        isotherm synth more.heat --like expert_distribution_recorder_1.pt --windows 1000
    """

    out: Annotated[Path, tyro.conf.Positional]
    """The heat file to write: it appears whole, or stays as it was."""
    spec: Annotated[HeatSpec, tyro.conf.arg(name="")] = field(default_factory=HeatSpec)
    like: Path | None = None
    """Take layers, experts and how uneven they are from a file of measured heat."""
    input_format: InputFormat | None = None
    """Whose file --like is; found by what it holds where it is left out."""
    moe_layers: str | None = None
    """The model's numbers of the MoE layers, such as 3-60; where it is left out they count from 0."""
    model_layers: int | None = None
    """All layers of the model, dense ones too."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the statistics as JSON on stdout."""


def run_synth(options: SynthOptions) -> int:
    """Makes the file and says what it holds; the exit code 0.

    Raises:
        ValueError: no heat is as asked for, a file cannot be read, or the output not written.
    """
    from isotherm.traces import read_heat
    from isotherm.traces.files import write_heat
    from isotherm.traces.synthesis import synthesize
    from isotherm.traces.synthesis_check import measure_synthetic

    layer_ids = parse_layers(options.moe_layers)
    spec, model_layers, like_LE = options.spec, options.model_layers, None
    if options.like is not None:
        model = read_heat(options.like, format=options.input_format, moe_layers=layer_ids)
        spec, layer_ids, like_LE = _spec_like(options, model), model.layer_ids, model.heat_LE
        model_layers = model_layers or model.header.model_layers
    elif layer_ids is not None:
        spec = _with(spec, "layers", len(layer_ids), f"--moe-layers {options.moe_layers}")
    trace = synthesize(spec, like=like_LE, layer_ids=layer_ids, model_layers=model_layers)
    write_heat(trace, options.out, track=partial(tracked, doing="writing"))
    statistics = measure_synthetic(
        spec, tracked(read_heat(options.out), "measuring"), like=options.like is not None
    )
    _show(options, spec, statistics)
    return 0


def _spec_like(options: SynthOptions, model: HeatTrace) -> HeatSpec:
    header, said = model.header, f"--like {options.like}"
    spec = _with(options.spec, "layers", len(header.layer_ids), said)
    spec = _with(spec, "experts", header.experts, said)
    return spec if header.top_k is None else _with(spec, "top_k", header.top_k, said)


def _with(spec: HeatSpec, name: str, value: int, said: str) -> HeatSpec:
    """The spec with a number that another option says; given too, it must be the same."""
    given = getattr(spec, name)
    if given not in (value, getattr(HeatSpec(), name)):
        raise ValueError(f"--{name.replace('_', '-')} {given}: {said} says {value}; leave one of them out")
    changed: dict[str, Any] = {name: value}
    return replace(spec, **changed)


def _show(options: SynthOptions, spec: HeatSpec, statistics: tuple[Statistic, ...]) -> None:
    if options.json:
        made = {"windows": spec.windows, "layers": spec.layers, "experts": spec.experts}
        print_json(
            {"out": str(options.out), **made, "statistics": [statistic.as_dict() for statistic in statistics]}
        )
        return
    table = Table(title="What was made, means over layers", title_justify="left")
    table.add_column("")
    for name in ("asked for", "made"):
        table.add_column(name, justify="right")
    for statistic in statistics:
        table.add_row(statistic.name, _number(statistic.asked, "any"), _number(statistic.made, "not seen"))
    console = wide_console()
    console.print(table)
    console.print(
        f"{options.out}: {spec.scenario}, {spec.windows} windows, {spec.layers} layers of "
        f"{spec.experts} experts",
        markup=False,
        soft_wrap=True,
    )


def _number(value: float | None, unknown: str) -> str:
    if value is None:
        return unknown
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
