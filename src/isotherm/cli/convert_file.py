"""`isotherm convert`: heat made a heat file, and placements of one system those of another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from isotherm.cli.file_options import (
    InputFormat,
    parse_layers,
    print_json,
    tell_assumed_layers,
    tell_notes,
    tracked,
)

OutputFormat = Literal["heat", "isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek"]


@dataclass(frozen=True)
class ConvertOptions:
    """Reads a file of one system and writes it for another.

    --format heat makes a heat file of any heat. The other formats take a placement: an expert map of vLLM
    Ascend, an initial expert location of SGLang, a load balancer configuration of TensorRT-LLM,
    DeepSeek-style arrays, or our own.

    Examples:
        isotherm convert expert_distribution_recorder_1.pt decode.heat --format heat
        isotherm convert expert_map.json location.json --format sglang --moe-layers 3-60 --model-layers 61
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The file to read."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write: it appears whole, or stays as it was."""
    format: OutputFormat
    """What to write."""
    input_format: InputFormat | None = None
    """Whose file is read; found by what it holds where it is left out."""
    moe_layers: str | None = None
    """The model's numbers of the MoE layers, such as 3-60, where the file does not say."""
    model_layers: int | None = None
    """All layers of the model, dense ones too, where the file does not say. SGLang wants to know."""
    mtp_layers: int = 0
    """Layers for multi-token prediction behind the model's own; TensorRT-LLM wants a row for each."""
    ranks: int | None = None
    """Ranks that the slots lie on, where the file does not say. vLLM Ascend wants to know."""
    top_k: int | None = None
    """Experts that a token picks, where the file does not say; for heat."""
    rows_per_window: int = 256
    """Forward passes in a window, of files that have a row for each; for heat."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print what was written as JSON on stdout."""


def run_convert(options: ConvertOptions) -> int:
    """Writes the file; the exit code 0.

    Raises:
        ValueError: the file cannot be read, does not hold what is asked for, or cannot be written.
    """
    if options.format == "heat" and (options.mtp_layers or options.ranks is not None):
        raise ValueError("--mtp-layers and --ranks are of a placement: leave them out with --format heat")
    written = _convert_heat(options) if options.format == "heat" else _convert_placement(options)
    if options.json:
        print_json({"out": str(options.out), "format": options.format, **written})
    else:
        from rich.console import Console

        what = ", ".join(f"{value} {name}" for name, value in written.items())
        Console(highlight=False).print(f"{options.out}: {what}", markup=False, soft_wrap=True)
    return 0


def _convert_heat(options: ConvertOptions) -> dict[str, int]:
    from isotherm.traces import read_heat
    from isotherm.traces.files import write_heat

    trace = read_heat(
        options.source,
        format=options.input_format,
        moe_layers=parse_layers(options.moe_layers),
        model_layers=options.model_layers,
        top_k=options.top_k,
        rows_per_window=options.rows_per_window,
    )
    tell_notes(trace.notes)
    write_heat(trace, options.out, track=partial(tracked, doing="writing"))
    return {"windows": len(trace), "layers": len(trace.layer_ids), "experts": trace.header.experts}


def _convert_placement(options: ConvertOptions) -> dict[str, int]:
    from isotherm.traces import read_placement, write_placement

    assert options.format != "heat"
    file = read_placement(
        options.source,
        format=options.input_format,
        moe_layers=parse_layers(options.moe_layers),
        model_layers=options.model_layers,
    )
    tell_notes(file.notes)
    write_placement(
        file,
        options.out,
        format=options.format,
        ranks=options.ranks,
        model_layers=options.model_layers,
        mtp_layers=options.mtp_layers,
    )
    tell_assumed_layers(options.format, file.layer_ids, file.model_layers or options.model_layers)
    return {"layers": file.placement.layers, "slots": file.placement.slots}
