"""Generates with a small MoE model of random weights in vLLM, in a process of its own: tokens as JSON.

``--routed FILE``, with ``--alone``, keeps beside it what vLLM's own capturer of experts saw in each step.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

COMMON = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "initializer_range": 0.2,
    "hidden_act": "silu",
    "eos_token_id": 1,
    "bos_token_id": 0,
}
FAMILIES = {
    # Its middle layer is dense.
    "qwen3_moe": COMMON
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "moe_intermediate_size": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "mixtral": COMMON
    | {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}


def generate(options: argparse.Namespace) -> dict[str, Any]:
    from vllm import LLM, SamplingParams, TokensPrompt

    save_model(options.family, options.model_folder)
    llm = LLM(
        model=options.model_folder,
        skip_tokenizer_init=True,
        dtype="float32",
        seed=0,
        max_model_len=128,
        max_num_seqs=8,
        max_num_batched_tokens=32,  # fewer than the prompts have: steps with prefill and decode tokens
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        tensor_parallel_size=options.tensor_parallel,
        **compilation(options.compiled),
    )
    routed = Routed(llm) if options.routed else None
    prompts = [[(7 * i + 13 * j) % 510 + 2 for j in range(20 + i)] for i in range(4)]
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    llm.llm_engine.engine_core.shutdown()
    if routed is not None:
        routed.save(options.routed)
    return {"tokens": [list(answer.outputs[0].token_ids) for answer in answers]}


def save_model(family: str, folder: str) -> None:
    """Random weights, the same at each call, and larger than vLLM's own dummy ones, whose experts add next to
    nothing to an answer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def compilation(compiled: bool) -> dict[str, Any]:
    """Traced by Dynamo once, as vLLM compiles for CPUs, and run as traced: what inductor makes of it is not
    what is tested, and takes minutes."""
    return {"compilation_config": {"mode": 2, "backend": "eager"}} if compiled else {"enforce_eager": True}


class Routed:
    """vLLM's own capturer of routed experts, bound to the model by vLLM, and read after each step."""

    def __init__(self, llm: Any) -> None:
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
            RoutedExpertsCapturer,
            bind_routed_experts_capturer,
        )

        self._worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        self._capturer = RoutedExpertsCapturer(32, llm.llm_engine.vllm_config)
        bind_routed_experts_capturer(self._worker.get_model(), self._capturer)
        self._steps: dict[str, np.ndarray] = {}
        self._execute = self._worker.execute_model
        self._worker.execute_model = self._execute_and_keep

    def _execute_and_keep(self, scheduled: Any) -> Any:
        output = self._execute(scheduled)
        tokens = scheduled.total_num_scheduled_tokens
        if tokens:
            step = len(self._steps) // 2
            self._steps[f"ids{step}"] = self._capturer.snapshot_routing_data(tokens).numpy()
            self._steps[f"decode{step}"] = self._is_decode(scheduled)
        return output

    def _is_decode(self, scheduled: Any) -> np.ndarray:
        """For each row, whether its request has answered anything yet: of new ones none has."""
        cached = scheduled.scheduled_cached_reqs
        outputs = dict(zip(cached.req_ids, cached.num_output_tokens))
        order = [each for each in self._worker.model_runner.input_batch.req_ids if each is not None]
        rows = [scheduled.num_scheduled_tokens[each] for each in order]
        return np.repeat([outputs.get(each, 0) > 0 for each in order], rows)

    def save(self, path: str) -> None:
        np.savez(path, **self._steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_folder")
    parser.add_argument("answers")
    parser.add_argument("--family", default="qwen3_moe", choices=FAMILIES)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--alone", action="store_true", help="all of vLLM in this process")
    parser.add_argument("--routed")
    options = parser.parse_args()
    if options.alone:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    Path(options.answers).write_text(json.dumps(generate(options)))


if __name__ == "__main__":
    main()
