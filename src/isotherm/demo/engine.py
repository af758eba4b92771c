"""One pass over the traffic: the same engine with balancing on, or off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import Config, Mode
from isotherm.control import Span, no_span
from isotherm.decide import Decision
from isotherm.demo.options import DemoOptions
from isotherm.demo.traffic import Traffic
from isotherm.engines.transformers import ExpertParallelModel, moe_shape, parallelize
from isotherm.mover import HostTransport, Transport
from isotherm.status import Statistics, TablesInForce
from isotherm.testing.faults import HastyTransport
from isotherm.topology import Topology
from isotherm.window import HeatWindow

MODEL = Path(__file__).parent / "model"
"""The model that ships."""


@dataclass(frozen=True, eq=False)
class RankRecord:
    """What one rank saw of a pass, step by step.

    Attributes:
        received_NL: int64 [steps, layers], (token, expert) pairs that this rank computed.
        expert_seconds_N, forward_seconds_N: float64 [steps], CPU time of the main thread in the expert
            products, and in the whole forward pass.
        isotherm_seconds_N: float64 [steps], CPU time of the main thread in Isotherm.
        digests: of the logits of each step.
    """

    received_NL: Int64Array
    expert_seconds_N: FloatArray
    forward_seconds_N: FloatArray
    isotherm_seconds_N: FloatArray
    digests: tuple[bytes, ...]
    statistics: Statistics


@dataclass(frozen=True, eq=False)
class PassRecord:
    """A pass as this rank saw it; windows are the same on every rank, decisions are rank 0's."""

    rank: RankRecord
    windows: tuple[HeatWindow, ...]
    decisions: tuple[Decision, ...]
    tables: tuple[TablesInForce, ...]


Watch = Callable[[int, HeatWindow | None], None]
"""Told of each finished step, with the newest window if there is a new one."""

Examine = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Shown the ids and logits of each step."""


def quiet_transformers() -> None:
    """Neither progress bars nor warnings: the demo's own progress and errors say what matters."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_model(path: Path | None) -> PreTrainedModel:
    """The stock model in eval mode, float32, on the CPU.

    Raises:
        ValueError: the folder holds no model, or one without MoE layers.
    """
    folder = path or MODEL
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model {folder}: no config.json there; give a folder that save_pretrained wrote")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model {folder}: {str(error).splitlines()[0]}") from error
    loaded: PreTrainedModel = model.train(False)
    if loaded.config.get_text_config().vocab_size < 256:
        raise ValueError(
            f"--model {folder}: its vocabulary of {loaded.config.vocab_size} cannot read bytes; "
            "give a model with at least 256 tokens"
        )
    return loaded


def demo_topology(model: PreTrainedModel, ranks: int, options: DemoOptions, nodes: int) -> Topology:
    """The slots of the demo: by default a quarter more than there are experts."""
    experts = moe_shape(model).experts
    redundant = experts // 4 if options.redundant is None else options.redundant
    return Topology.for_model(experts=experts, redundant=redundant, ranks=ranks, nodes=nodes)


def demo_config(options: DemoOptions, mode: Mode) -> Config:
    """Short windows and a small budget per step, so that a run of seconds shows every stage."""
    return Config(
        mode=mode,
        policy=options.policy,
        window_steps=options.window,
        max_imbalance=1.02,
        min_gain=0.01,
        move_bytes_per_step=8 * 2**20,
        heartbeat_seconds=0.01,
    )


def run_pass(
    options: DemoOptions,
    traffic: Traffic,
    mode: Mode,
    nodes: int,
    *,
    watch: Watch,
    examine: Examine = lambda step, ids, logits: None,
    span: Span = no_span,
) -> PassRecord:
    """Runs every step of the traffic on this rank. A collective over the default group."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = load_model(options.model)
    windows: list[HeatWindow] = []
    decisions: list[Decision] = []
    transport: type[Transport] = HastyTransport if options.sabotage else HostTransport
    group = dist.group.WORLD
    assert group is not None, "the default group was initialised"
    engine = parallelize(
        model,
        group,
        topology=demo_topology(model, ranks, options, nodes),
        config=demo_config(options, mode),
        transport=transport,
        span=span,
    )
    engine.balancer.on_window(windows.append)
    engine.balancer.on_decision(decisions.append)
    steps = _Steps(engine, span)
    seen = 0
    for step in range(options.steps):
        ids = torch.from_numpy(traffic.batch(step, rank))
        examine(step, ids, steps.run(ids))
        watch(step, windows[-1] if len(windows) > seen else None)
        seen = len(windows)
    record = steps.record()
    tables = tuple(engine.balancer.tables_in_force)
    engine.close()
    return PassRecord(record, tuple(windows), tuple(decisions), tables)


class _Steps:
    """Runs steps and notes what each cost."""

    def __init__(self, engine: ExpertParallelModel, span: Span) -> None:
        self._engine = engine
        self._span = span
        self._received: list[list[int]] = []
        self._seconds: list[tuple[float, float, float]] = []
        self._digests: list[bytes] = []

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        engine, meter = self._engine, self._engine.meter
        meter.reset()
        begun = time.thread_time()
        with self._span(f"forward {len(self._received)}", "main"):
            logits: torch.Tensor = engine.model(input_ids=ids, use_cache=False).logits
        forward = time.thread_time() - begun
        self._received.append(list(meter.received_L))
        self._seconds.append((meter.expert_seconds, forward, meter.isotherm_seconds))
        self._digests.append(hashlib.blake2b(logits.numpy().tobytes(), digest_size=16).digest())
        return logits

    def record(self) -> RankRecord:
        seconds_N3 = np.array(self._seconds)
        return RankRecord(
            received_NL=np.array(self._received, np.int64),
            expert_seconds_N=seconds_N3[:, 0],
            forward_seconds_N=seconds_N3[:, 1],
            isotherm_seconds_N=seconds_N3[:, 2],
            digests=tuple(self._digests),
            statistics=self._engine.balancer.statistics(),
        )


@dataclass(frozen=True)
class StockCheck:
    """Greedy tokens of the parallel engine against those of the stock model.

    ``different`` of ``tokens`` differ, of which ``beyond`` by more than the tolerance: the stock model
    gave its own choice a logit larger than that of ours by more than ``TOLERANCE``.
    """

    tokens: int
    different: int
    beyond: int

    def __add__(self, other: StockCheck) -> StockCheck:
        return StockCheck(
            self.tokens + other.tokens,
            self.different + other.different,
            self.beyond + other.beyond,
        )


TOLERANCE = 1e-4
"""Two tokens whose stock logits differ by less are a tie: sums were made in another order."""


class StockComparison:
    """Compares greedy tokens with those of the stock model, on the steps in ``steps``."""

    def __init__(self, model: Path | None, steps: tuple[int, ...]) -> None:
        self._stock = load_model(model)
        self._steps = steps
        self.total = StockCheck(0, 0, 0)

    @torch.inference_mode()
    def examine(self, step: int, ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Compares the greedy token at every position."""
        if step not in self._steps:
            return
        wanted = self._stock(input_ids=ids, use_cache=False).logits
        ours = logits.argmax(-1, keepdim=True)
        lost = wanted.max(-1, keepdim=True).values - wanted.gather(-1, ours)
        different = ours != wanted.argmax(-1, keepdim=True)
        self.total += StockCheck(ours.numel(), int(different.sum()), int((lost > TOLERANCE).sum()))
