"""The demo as a user runs it: processes, files, exit codes, and what is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from isotherm import MoEShape, Placement, Topology, overall_imbalance
from isotherm.demo.engine import MODEL, load_model
from isotherm.demo.text import load_corpus
from isotherm.placement import rank_loads
from ranks import LOOPBACK

# Whole runs of several processes: on a busy machine they take their time.
pytestmark = pytest.mark.timeout(300)
DEMO = [sys.executable, "-m", "isotherm", "demo"]
SMALL = ["--sequences", "4", "--length", "64", "--window", "4"]


def run(arguments, timeout=250, **environment):
    return subprocess.run(
        [*DEMO, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


def test_imbalance_falls_and_every_answer_is_equal(tmp_path):
    out, timeline = tmp_path / "out", tmp_path / "timeline.json"
    options = ["--ranks", 4, "--steps", 48, "--json", "--out", out, "--timeline", timeline]
    done = run([*options, *SMALL, "--seed", 3])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"]
    assert result["waits"] == 0
    assert result["wrong_logits"] == []
    assert result["stock"]["beyond"] == 0
    assert result["stock"]["tokens"] == 3 * 4 * 4 * 64
    assert result["moves"] > 0
    assert result["moved_bytes"] > 0
    phases = {phase["name"]: phase["imbalance"] for phase in result["phases"]}
    assert phases["before balancing"] >= 1.25
    assert phases["balanced"] < phases["before balancing"]
    assert phases["shift answered"] < phases["just after the shift"]
    assert "balancing: step 48/48" in done.stderr
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "result.json").read_text()) == result
    events = json.loads(timeline.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"rank 0", "rank 3", "main", "heartbeat", "planner", "carrier"} <= names
    kinds = {event["name"].split()[0] for event in events if event["ph"] == "X"}
    assert {"forward", "snapshot", "gather", "headers", "plan", "carry"} <= kinds


def test_sabotage_is_found(tmp_path):
    options = ["--ranks", 2, "--steps", 40, "--sabotage", "--out", tmp_path / "out"]
    done = run([*options, *SMALL])
    assert done.returncode == 1, done.stderr
    assert "WRONG: logits differ from balancing off" in done.stdout


@torch.inference_mode()
def loaded_imbalance(model, corpus, kind, seed):
    """What the slots as loaded make of a step of eight ranks: imbalance over all layers."""
    heats = []
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda module, args, output: heats.append(output[2].flatten().bincount(minlength=32))
        )
        for layer in model.model.layers
    ]
    model(input_ids=torch.from_numpy(corpus.batch(kind, 0, 0, seed=seed, sequences=64, length=96)))
    for hook in hooks:
        hook.remove()
    topology = Topology.for_model(experts=32, redundant=8, ranks=8)
    default = Placement.default(MoEShape(4, 32, 4), topology)
    loads = rank_loads(torch.stack(heats).numpy(), default, default.even_shares(), topology)
    return overall_imbalance(loads)


def test_the_model_that_ships_is_skewed_on_every_seed_and_kind():
    model, corpus = load_model(None), load_corpus()
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8 * 2**20
    values = [loaded_imbalance(model, corpus, kind, seed) for kind in (0, 1) for seed in range(6)]
    assert min(values) >= 1.25, values


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def agent(node, port, arguments):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
        "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port),
        "-m", "isotherm", "demo", *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(agents):
    try:
        return [agent.communicate(timeout=250) for agent in agents]
    finally:
        for each in agents:
            each.kill()


def test_two_launcher_agents_make_one_job(tmp_path):
    options = ["--steps", 24, *SMALL, "--json", "--out", tmp_path / "out"]
    port = free_port()
    agents = [agent(node, port, options) for node in range(2)]
    (first, errors), (second, _) = finish(agents)
    assert [each.returncode for each in agents] == [0, 0], errors
    assert json.loads(first)["ranks"] == 4
    assert second == ""


def test_ranks_with_other_options_are_named(tmp_path):
    port = free_port()
    agents = [
        agent(node, port, ["--steps", 24, *SMALL, "--seed", node, "--out", tmp_path / "out"])
        for node in range(2)
    ]
    errors = "".join(error for _, error in finish(agents))
    assert all(each.returncode for each in agents)
    assert "rank 2 was started with seed=1, rank 0 with seed=0" in errors


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    config = Qwen3Config(
        vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_wrong_input_is_one_message_and_exit_code_2(tmp_path, dense_model):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            ("--ranks", "3"): ("slots do not divide over ranks=3", "choose redundant="),
            ("--ranks", "0"): ("--ranks 0", "positive"),
            ("--redundant", "-1"): ("redundant=-1", "0 or more"),
            ("--model", str(tmp_path)): ("no config.json", "save_pretrained"),
            ("--model", str(dense_model)): ("has no MoE layer", "Mixture-of-Experts model"),
            ("--text", str(tmp_path / "missing.txt")): ("missing.txt", "--text"),
            ("--text", str(empty)): ("empty.txt", "--text"),
            ("--policy", "best"): ("best", "incremental"),
            ("--length", "9000000", "--ranks", "2"): ("length=9000000 does not fit text 'prose'",),
            ("--port", str(port)): (f"--port {port}", "choose another"),
            ("--step", "5"): ("--step", "--steps"),
            ("--mode", "fast"): ("fast", "observe"),
        }
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(run, [*arguments, "--out", tmp_path / "out"]) for arguments in cases]
    for (arguments, parts), each in zip(cases.items(), runs, strict=True):
        done = each.result()
        assert done.returncode == 2, (arguments, done.stderr)
        assert "Traceback" not in done.stderr, arguments
        message = " ".join(done.stderr.replace("│", " ").split())
        assert all(part in message for part in parts), (arguments, message)
    assert not (tmp_path / "out").exists()


def processes_of(marker):
    listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if marker in line and "ps -eo" not in line]


def test_interrupting_ends_all_ranks(tmp_path):
    marker = str(tmp_path / "interrupted")
    demo = subprocess.Popen(
        [*DEMO, "--ranks", "2", "--steps", "100000", *SMALL, "--out", marker],
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(demo.stderr.readline, "")
    assert any("balancing: step" in line for line in lines)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 20
    while processes_of(marker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(marker) == []
