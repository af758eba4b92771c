"""`isotherm record -- vllm`: a server of two ranks, asked over HTTP, measured, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vllm_generate import save_model

from isotherm import Topology, read_heat
from isotherm.traces.trace import HeatTrace

PROMPTS = [[(7 * i + 13 * j) % 510 + 2 for j in range(20 + i)] for i in range(4)]
ANSWER = 8
TOP_K = 4
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Served:
    answers: list[list[int]]
    metrics: str
    code: int
    heat: HeatTrace


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    request.add_header("Content-Type", "application/json")
    with LOCAL.open(request, timeout=300) as reply:
        return str(reply.read().decode())


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-5000:]
        with contextlib.suppress(OSError):
            ask(port, "/health")
            return
        time.sleep(1)
    pytest.fail(f"not healthy in time: {log.read_text()[-5000:]}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    save_model("qwen3_moe", str(folder))
    port, metrics_port, heat = free_port(), free_port(), folder / "seen.heat"
    record = ["record", "--out", str(heat), "--window-steps", "2", "--metrics-port", str(metrics_port)]
    # What `vllm serve` runs: the build for CPUs does not find its own version, and has no such command.
    serve = ["vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    serve += ["--port", str(port), "--skip-tokenizer-init", "--enable-scale-out"]
    serve += ["--dtype", "float32", "--enforce-eager"]
    serve += ["--max-model-len", "128", "--max-num-batched-tokens", "32"]
    serve += ["--kv-cache-memory-bytes", str(64 << 20), "--no-enable-prefix-caching"]
    # Under expert parallelism the build for CPUs ends in its own MoE kernel.
    serve += ["--tensor-parallel-size", "2"]
    command = [sys.executable, "-m", "isotherm", *record, "--", sys.executable, "-m", *serve]
    log = folder / "log"
    # Two ranks on as few cores as there are.
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_until_healthy(process, port, log)
            sampling = {"temperature": 0, "max_tokens": ANSWER, "ignore_eos": True, "detokenize": False}
            answers = [
                json.loads(
                    ask(port, "/inference/v1/generate", {"token_ids": prompt, "sampling_params": sampling})
                )["choices"][0]["token_ids"]
                for prompt in PROMPTS
            ]
            metrics = ask(metrics_port, "/metrics")
            process.send_signal(signal.SIGTERM)
            code = process.wait(300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Served(answers, metrics, code, read_heat(heat))


def test_the_server_answers_and_ends_as_it_was_told(served: Served) -> None:
    assert [len(answer) for answer in served.answers] == [ANSWER] * len(PROMPTS)
    assert served.code == 0


def test_every_token_is_in_the_file_once(served: Served) -> None:
    assert served.heat.header.topology == Topology(ranks=2, slots_per_rank=8)
    tokens_K = sum(window.tokens_K for window in served.heat)
    assert tokens_K.tolist() == [sum(map(len, PROMPTS)), len(PROMPTS) * (ANSWER - 1)]
    for window in served.heat:
        assert (window.heat_LE.sum(axis=1) == TOP_K * window.tokens_K.sum()).all()


def test_metrics_were_served_meanwhile(served: Served) -> None:
    samples = dict(line.rsplit(" ", 1) for line in served.metrics.splitlines() if line[0] != "#")
    assert float(samples["isotherm_windows_total"]) > 0
    assert float(samples['isotherm_tokens_total{kind="prefill"}']) > 0
    assert float(samples['isotherm_hottest_expert_ratio{quantile="1"}']) >= 1
