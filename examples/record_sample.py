"""Records the sample that ships: heat of the demo's own model while it reads and writes text.

torchrun --nproc-per-node 8 examples/record_sample.py --out src/isotherm/traces/sample.heat

Each rank reads prompts and has the model write behind them, byte by byte, from its cache: reading is
prefill, writing is decode. Answers are code throughout. Prompts are prose, which asks for code; fade into
code, which is to be completed; stay so, and turn back to prose at once. So prefill and decode use other
experts while prose is read, and the same while code is. What is written is given, as from an answer that is
known: equal runs serve equal text.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from isotherm.config import Config
from isotherm.demo.engine import load_model, quiet_transformers
from isotherm.demo.text import Corpus, load_corpus
from isotherm.engines.transformers import ExpertParallelModel, moe_shape, parallelize
from isotherm.topology import Topology
from isotherm.traces.recording import record_to

SEQUENCES, PROMPT, WRITTEN = 8, 96, 24
ROUND = 1 + WRITTEN  # steps: one reads the prompts, the others write a byte of each sequence
ANSWERS = 1 << 20  # prompts and answers are other stretches of text
ROUNDS_PER_WINDOW = 2
PROSE, FADE, CODE, PROSE_AGAIN = 20, 4, 16, 8  # windows


def part_of_code(window: int) -> float:
    """The part of prompts that are code."""
    if window >= PROSE + FADE + CODE:
        return 0.0
    return float(np.clip((window - PROSE + 1) / (FADE + 1), 0, 1))


def texts(corpus: Corpus, number: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts int64 [sequences, bytes], and what is written behind them."""
    prose, code = range(len(corpus.kinds))

    def batch(kind: int, step: int, length: int) -> np.ndarray:
        return corpus.batch(kind, step, rank, seed=0, sequences=SEQUENCES, length=length)

    is_code = np.random.default_rng((number, rank)).random(SEQUENCES) < part_of_code(
        number // ROUNDS_PER_WINDOW
    )
    read = np.where(is_code[:, None], batch(code, number, PROMPT), batch(prose, number, PROMPT))
    return torch.from_numpy(read), torch.from_numpy(batch(code, ANSWERS + number, WRITTEN))


@torch.inference_mode()
def serve_round(engine: ExpertParallelModel, prompts: torch.Tensor, answers: torch.Tensor) -> None:
    """Reads the prompts and writes the answers behind them, a byte of each sequence per step."""
    done = engine.model(input_ids=prompts, use_cache=True)
    for byte in range(WRITTEN):
        written = answers[:, byte : byte + 1]
        done = engine.model(input_ids=written, past_key_values=done.past_key_values, use_cache=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=PROSE + FADE + CODE + PROSE_AGAIN)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_transformers()
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, corpus = load_model(None), load_corpus()
    experts = moe_shape(model).experts
    topology = Topology.for_model(experts=experts, redundant=experts // 4, ranks=ranks)
    config = Config(mode="observe", window_steps=ROUND * ROUNDS_PER_WINDOW, slices=ROUNDS_PER_WINDOW)
    engine = parallelize(model, dist.group.WORLD, topology=topology, config=config)
    if rank == 0:
        recorder = record_to(
            options.out,
            engine.balancer.shape,
            topology,
            placement=lambda: engine.balancer.placement,
            model="the demo's Qwen3-MoE",
            engine="transformers",
        )
        engine.balancer.on_window(recorder)
    for window in range(options.windows):
        for number in range(ROUNDS_PER_WINDOW * window, ROUNDS_PER_WINDOW * (window + 1)):
            serve_round(engine, *texts(corpus, number, rank))
            # A machine that serves eight ranks may lag, and slices would be longer for it.
            while engine.balancer.statistics().gathered_step < ROUND * (number + 1):
                time.sleep(0.005)
        if rank == 0 and window % 4 == 0:
            print(f"window {window} of {options.windows}", flush=True)
    dist.barrier()
    engine.close()
    if rank == 0:
        recorder.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
