"""What `isotherm simulate` and `isotherm compare` ask in common: the heat, and the cluster to imagine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from isotherm.cli.file_options import InputFormat, imagined_topology, parse_layers, tell_notes, unknown_kind
from isotherm.planner.outlook.price import StepTime
from isotherm.replay import EXPERT_BYTES, Cluster
from isotherm.replay.windows import one_kind, rewindowed, whole_windows

if TYPE_CHECKING:
    from isotherm.traces import HeatHeader, HeatTrace
    from isotherm.window import HeatWindow

_BATCH_TOKENS = 64
_ROW_STEPS = 256


@dataclass(frozen=True)
class ReplayOptions:
    """The fields that both commands have."""

    file: Annotated[Path, tyro.conf.Positional]
    """The heat: any file that `isotherm inspect` reads."""
    ranks: int | None = None
    """Ranks of the expert-parallel group to imagine. Left out: those that a heat file was collected on."""
    nodes: int | None = None
    """Machines that the ranks are on, equally many on each."""
    redundant: Annotated[int | None, tyro.conf.arg(aliases=("--slots",))] = None
    """Slots beyond one for each expert, over all ranks."""
    window: int | None = None
    """Steps (forward passes) in a window. Left out: as in a heat file; 256 of files with a row for each step,
    and 32 of ids of experts per token, or an eighth of all there are, where that is less."""
    batch: int | None = None
    """Of ids of experts per token: tokens in a step; 64, where it is left out."""
    kind: str | None = None
    """Tokens of this kind alone, such as decode."""
    step_ms: float | None = None
    """Milliseconds of a step whose ranks are balanced, as the engine's log or a profile says. Together with
    --expert-share."""
    expert_share: float | None = None
    """The part of such a step that waits for the rank with most tokens, from 0 to 1: the expert layers."""
    expert_bytes: int = EXPERT_BYTES
    """Weights of one expert in one layer; where it is left out, DeepSeek-V3's in 16 bits."""
    link_gb_per_second: float = 25.0
    """10^9 bytes per second into one rank from another node."""
    node_gb_per_second: float = 450.0
    """10^9 bytes per second into one rank from a rank of its own node."""
    input_format: InputFormat | None = None
    """Whose file it is; found by what it holds where it is left out."""
    moe_layers: str | None = None
    """The model's numbers of the MoE layers, such as 3-60, where the file does not say."""

    def cluster(self, header: HeatHeader) -> Cluster:
        """The cluster to imagine for the model and the ranks of a file.

        Raises:
            ValueError: numbers out of range, or one of --step-ms and --expert-share without the other.
        """
        if (self.step_ms is None) != (self.expert_share is None):
            raise ValueError("--step-ms and --expert-share go together: give both, or neither")
        step = None
        if self.step_ms is not None and self.expert_share is not None:
            if not 0 < self.step_ms < math.inf or not 0 < self.expert_share <= 1:
                raise ValueError(
                    f"--step-ms {self.step_ms} must be above 0, and --expert-share {self.expert_share} above "
                    "0 and at most 1"
                )
            step = StepTime(self.step_ms, self.expert_share)
        return Cluster(
            imagined_topology(header, ranks=self.ranks, nodes=self.nodes, redundant=self.redundant),
            expert_bytes=self.expert_bytes,
            link_bytes_per_second=self.link_gb_per_second * 1e9,
            node_bytes_per_second=self.node_gb_per_second * 1e9,
            step=step,
        )


def read_replayed(options: ReplayOptions) -> HeatTrace:
    """The trace that the options name; ids of experts per token in batches. Notes go to stderr.

    Raises:
        ValueError: the file is not what it should be, or an option does not fit it.
    """
    from isotherm.replay.batches import read_batches
    from isotherm.traces import detect_format, read_heat
    from isotherm.traces.detection import located
    from isotherm.traces.sources import Source

    for name in ("window", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value} is below 1: give a positive number")
    layers = parse_layers(options.moe_layers)
    found = options.input_format or detect_format(options.file)
    if found == "token-ids":
        trace = read_batches(
            Source(located(options.file), layers),
            batch_tokens=_BATCH_TOKENS if options.batch is None else options.batch,
            window_steps=options.window,
        )
    elif options.batch is not None:
        raise ValueError(
            f"--batch {options.batch} is for ids of experts per token; {options.file} holds counts"
        )
    else:
        # Rows stay steps of their own, so that the noise of steps is seen.
        trace = read_heat(options.file, format=found, moe_layers=layers, rows_per_window=1)
    tell_notes(trace.notes)
    return trace


def steps_asked(trace: HeatTrace, options: ReplayOptions) -> int | None:
    """Steps in a window, by the options or by what the trace is; None: the trace's own windows."""
    if len(trace) == 1 and trace[0].steps == 1:
        return None  # one matrix stays one
    if options.window is None and trace[0].steps == 1:
        return whole_windows(trace[-1].end_step - trace[0].start_step, _ROW_STEPS)
    return options.window


def chosen_windows(
    trace: HeatTrace, windows: Iterable[HeatWindow], options: ReplayOptions
) -> Iterable[HeatWindow]:
    """``windows`` of the trace, of the kind and the length asked for, in turn.

    Raises:
        ValueError: the file does not know the kind.
    """
    if options.kind is not None:
        kinds: Sequence[str] = trace.header.kinds
        if options.kind not in kinds:
            raise unknown_kind(options.kind, kinds)
        windows = one_kind(windows, kinds.index(options.kind))
    steps = steps_asked(trace, options)
    return windows if steps is None else rewindowed(windows, steps)


def too_short(trace: HeatTrace, options: ReplayOptions) -> ValueError:
    """The error where not one window could be made."""
    steps = trace[-1].end_step - trace[0].start_step
    return ValueError(
        f"{options.file}: holds {steps} steps, fewer than a window of {steps_asked(trace, options)}: choose "
        "a shorter --window"
    )
