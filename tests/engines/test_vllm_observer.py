"""Heat counted beside vLLM, without vLLM: routers found, rows told apart, failures kept away."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from isotherm.bench.echo import EchoLink
from isotherm.engines.vllm.meters import WindowMetrics
from isotherm.engines.vllm.observer import HeatObserver, tokens_of
from isotherm.engines.vllm.routers import find_routers, own_rows
from isotherm.engines.vllm.settings import VllmSettings
from isotherm.engines.vllm.workers import bind_steps, window_keepers
from isotherm.heat import HeatCollector
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow

EXPERTS, TOP_K = 6, 2


class Router:
    """As much of vLLM's router as is touched: chooses by the largest of its inputs."""

    def __init__(self) -> None:
        self.top_k = TOP_K
        self.capture_fn: Callable[[torch.Tensor], None] | None = None

    def set_capture_fn(self, capture_fn: Callable[[torch.Tensor], None] | None) -> None:
        self.capture_fn = capture_fn

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        ids = logits.topk(self.top_k, dim=1).indices.to(torch.int32)
        if self.capture_fn is not None:
            self.capture_fn(ids)
        return ids


class MoE(torch.nn.Module):
    def __init__(self, layer_id: int, *, is_monolithic: bool = False) -> None:
        super().__init__()
        self.layer_id, self.is_monolithic = layer_id, is_monolithic
        self.router = Router()
        self.moe_config = SimpleNamespace(num_logical_experts=EXPERTS)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.router.select(logits)


class Model(torch.nn.Module):
    """Two MoE layers, named out of order, among layers without a router."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.later, self.dense, self.first = MoE(5, **kwargs), torch.nn.Linear(2, 2), MoE(2)

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(logits), self.later(-logits)


class Watched:
    """A model observed by one rank, two steps a window, on this thread."""

    def __init__(self, **kwargs: Any) -> None:
        self.model = Model()
        routers = find_routers(self.model)
        self.collector = HeatCollector(
            routers.shape,
            Topology(ranks=1, slots_per_rank=EXPERTS),
            EchoLink(1),
            window_steps=2,
            inline=True,
        )
        self.observer = HeatObserver(self.collector, routers, window_steps=2, **kwargs)

    def step(self, logits: torch.Tensor, num_tokens: int, num_decode: int) -> tuple[torch.Tensor, ...]:
        self.observer.begin(step_of(num_tokens, num_decode))
        ids_L = self.model(logits)
        self.observer.end()
        return ids_L


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, EXPERTS, generator=torch.Generator().manual_seed(seed))


def counted(ids_TK: torch.Tensor) -> list[int]:
    return torch.bincount(ids_TK.flatten(), minlength=EXPERTS).tolist()


def test_routers_are_found_by_what_they_are_and_in_the_order_of_layers() -> None:
    model = Model()
    found = find_routers(model)
    assert (found.shape.ids, found.shape.experts, found.shape.top_k) == ((2, 5), EXPERTS, TOP_K)
    assert found.routers == (model.first.router, model.later.router)


def test_models_that_cannot_be_observed_are_refused() -> None:
    with pytest.raises(ValueError, match="no MoE layer"):
        find_routers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layer 5 \(MoE\) chooses experts inside"):
        find_routers(Model(is_monolithic=True))
    partly = Model()  # as vLLM's code for one kind of accelerator: other layers must not pass for the whole
    vars(partly.first).update(capture_fn=None)
    with pytest.raises(ValueError, match=r"layer 2 \(MoE\) chooses experts in code of its own"):
        find_routers(partly)


def test_real_tokens_of_steps_are_counted_by_kind_and_nothing_else_is() -> None:
    watched = Watched()
    watched.model(logits_of(9, seed=7))  # profiling
    first = watched.step(logits_of(8, seed=1), 5, 2)  # three rows of padding
    watched.model(logits_of(9, seed=8))  # a warm-up between steps
    second = watched.step(logits_of(3, seed=2), 3, 3)
    window = watched.collector.poll()
    assert window is not None
    for layer in range(2):
        decode = torch.cat([first[layer][:2], second[layer]])
        assert window.heat_KSLE[1].sum(axis=0)[layer].tolist() == counted(decode)
        assert window.heat_KSLE[0].sum(axis=0)[layer].tolist() == counted(first[layer][2:5])
    assert window.tokens_K.tolist() == [3, 5]
    assert window.layer_ids == (2, 5)


def test_the_last_window_is_filled_up_when_the_engine_ends() -> None:
    watched = Watched()
    for seed in range(3):
        watched.step(logits_of(4, seed), 4, 0)
    watched.observer.close()
    windows = [watched.collector.poll() for _ in range(2)]
    assert [window and window.tokens_K.tolist() for window in windows] == [[8, 0], [4, 0]]
    assert [window and window.heat_LE.sum() for window in windows] == [2 * TOP_K * 8, 2 * TOP_K * 4]
    assert not watched.observer.begin(step_of(4, 0))


def test_compiled_regions_count_at_each_call() -> None:
    watched = Watched()
    compiled = torch.compile(watched.model, backend="aot_eager", fullgraph=True)
    rows = [logits_of(8, seed=1), logits_of(8, seed=2)]
    compiled(rows[0])  # traced while no step is on
    expected = np.zeros((2, EXPERTS), np.int64)
    for logits, num_tokens in zip(rows, (8, 3), strict=True):
        watched.observer.begin(step_of(num_tokens, 0))
        ids_L = compiled(logits)
        watched.observer.end()
        expected += [counted(ids_TK[:num_tokens]) for ids_TK in ids_L]
    window = watched.collector.poll()
    assert window is not None
    np.testing.assert_array_equal(window.heat_LE, expected)


def test_whoever_captures_choices_besides_still_sees_them() -> None:
    model, seen = Model(), []
    model.first.router.set_capture_fn(lambda ids: seen.append(("before", ids)))
    see: list[Callable[[torch.Tensor], None]] = [lambda ids: seen.append(("ours", ids))] * 2
    find_routers(model).show(see)
    model(logits_of(2))
    assert [name for name, _ in seen] == ["ours", "before", "ours"]
    model.first.router.set_capture_fn(lambda ids: seen.append(("after", ids)))
    seen.clear()
    model(logits_of(2))
    assert [name for name, _ in seen] == ["ours", "after", "ours"]
    model.first.router.set_capture_fn(None)
    seen.clear()
    model(logits_of(2))
    assert [name for name, _ in seen] == ["ours", "ours"]


def test_a_rank_whose_tokens_another_counts_ends_its_steps_without_counts() -> None:
    watched = Watched(counts=False)
    for _ in range(2):
        watched.step(logits_of(4), 4, 0)
    window = watched.collector.poll()
    assert window is not None
    assert (window.heat_LE.sum(), window.tokens_K.sum(), window.steps) == (0, 0, 2)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_own_rows_are_found_in_every_layout(rank: int) -> None:
    """Tokens of three ranks, 3, 1 and 2 of them, as they are or in two shards a rank with padding."""
    sizes = torch.tensor([3, 1, 2])
    mine, every = [[0, 1, 2], [10], [20, 21]], [0, 1, 2, 10, 20, 21]
    plain = SimpleNamespace(num_tokens_across_dp_cpu=sizes, local_sizes=None)
    sharded = SimpleNamespace(num_tokens_across_dp_cpu=sizes, local_sizes=[2, 2, 1, 1, 1, 1])
    pad = -9
    for metadata, rows in (
        (plain, mine[rank]),
        (plain, every),
        (sharded, [0, 1, 2, pad, 10, pad, 20, 21]),
        (sharded, every),
    ):
        own = own_rows(torch.tensor(rows)[:, None], metadata, rank)
        assert own is not None
        assert own.flatten().tolist() == mine[rank]
    assert own_rows(torch.zeros(5, 1), plain, rank) is None
    assert own_rows(torch.zeros(5, 1), None, rank) is not None


def test_what_fails_is_told_once_and_the_engine_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("by design")

    monkeypatch.setattr(watched.collector, "count_ids", broken)
    with caplog.at_level(logging.ERROR, "isotherm"):
        for _ in range(3):
            assert len(watched.step(logits_of(4), 4, 0)) == 2
    assert len(caplog.records) == 1
    assert watched.collector.step == 0
    assert not watched.observer.begin(step_of(4, 0))


def test_a_scheduler_that_speaks_otherwise_ends_the_observation_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched()
    assert not watched.observer.begin(SimpleNamespace(total_num_scheduled_tokens=4))
    assert "not observed any more" in caplog.text


class Worker:
    """As much of vLLM's worker as is bound."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def execute_model(self, scheduled: Any) -> str:
        self.did.append("execute")
        return "output"

    def execute_dummy_batch(self) -> None:
        self.did.append("dummy")

    def shutdown(self) -> None:
        self.did.append("shutdown")


class Told:
    """An observer that keeps what it is told, in the order of what the worker does."""

    def __init__(self, did: list[str]) -> None:
        self._did = did

    def begin(self, scheduled: Any) -> bool:
        self._did.append("begin {} {}".format(*tokens_of(scheduled)))
        return scheduled.total_num_scheduled_tokens > 0

    def end(self) -> None:
        self._did.append("end")

    def close(self) -> None:
        self._did.append("close")


def step_of(num_tokens: int, num_decode: int) -> Any:
    """What vLLM's scheduler says of a step: one new request, one that answers."""
    return scheduled({"new": num_tokens - num_decode}, {"begun": (num_decode, 1)})


def scheduled(new: dict[str, int], begun: dict[str, tuple[int, int]]) -> Any:
    """Tokens of new requests, and (tokens, outputs so far) of those that were scheduled before."""
    tokens = {**new, **{name: count for name, (count, _) in begun.items()}}
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(begun), num_output_tokens=[out for _, out in begun.values()]
        ),
    )


def test_a_worker_tells_of_each_step_that_computes_anything() -> None:
    worker = Worker()
    bind_steps(worker, Told(worker.did))  # type: ignore[arg-type]
    assert worker.execute_model(scheduled({"a": 20}, {"b": (1, 4), "c": (16, 0), "d": (3, 1)})) == "output"
    worker.execute_model(scheduled({}, {}))
    worker.execute_dummy_batch()
    worker.shutdown()
    assert worker.did == [
        *("begin 40 4", "execute", "end"),
        *("begin 0 0", "execute"),
        *("dummy", "end"),
        *("close", "shutdown"),
    ]


def test_a_file_or_a_port_that_cannot_be_had_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine goes on, and so does what can be had."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0"))  # type: ignore[arg-type]
    worker: Any = SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(model="small")))
    path, topology = tmp_path / "seen.heat", Topology(ranks=1, slots_per_rank=EXPERTS)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        settings = VllmSettings(observed=path, port=taken.getsockname()[1])
        for shape, kept in ((MoEShape(2, EXPERTS, TOP_K), 1), (MoEShape(3, EXPERTS, TOP_K), 0)):
            caplog.clear()
            assert len(window_keepers(worker, shape, topology, settings)) == kept
            assert "metrics are not served" in caplog.text
            assert ("start another file" in caplog.text) == (kept == 0)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("isotherm.traces.record_to", full)
        assert window_keepers(worker, shape, topology, settings) == []
        assert "heat is not recorded: [Errno 28]" in caplog.text


def test_windows_become_metrics() -> None:
    metrics, registry = WindowMetrics(), CollectorRegistry()
    registry.register(metrics)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("isotherm_windows_total") == 0
    assert value("isotherm_hottest_expert_ratio", quantile="1") is None
    heat_KSLE = np.zeros((2, 1, 2, 4), np.int64)
    heat_KSLE[0, 0, 0], heat_KSLE[1, 0, 0] = [3, 1, 0, 0], [5, 1, 1, 1]  # 8, 2, 1, 1: mean 3
    for _ in range(2):
        metrics(HeatWindow(heat_KSLE, None, (0, 4), np.array([2, 4]), (0, 1)))
    assert value("isotherm_windows_total") == 2
    assert value("isotherm_tokens_total", kind="prefill") == 4
    assert value("isotherm_tokens_total", kind="decode") == 8
    assert value("isotherm_hottest_expert_ratio", quantile="1") == pytest.approx(8 / 3)
    assert value("isotherm_hottest_expert_ratio", quantile="0.5") == pytest.approx((1 + 8 / 3) / 2)
