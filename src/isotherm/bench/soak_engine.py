"""The engine of the soak: a small MoE over the ranks, with the same engine without balancing beside it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from isotherm.arrays import Int64Array
from isotherm.balancer import Balancer
from isotherm.bench.ranks import RANKS
from isotherm.config import Config
from isotherm.control import GroupLink, Limits, Transfer
from isotherm.control.link import WordArray
from isotherm.engines.dispatch import dispatch_tokens
from isotherm.hall.rooms import MakeTransport
from isotherm.mover import HostTransport
from isotherm.status import Statistics
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow

SHAPE = MoEShape(layers=3, experts=16, top_k=2)
TOPOLOGY = Topology.for_model(experts=16, redundant=4, ranks=RANKS)
CONFIG = Config(mode="full", window_steps=8, min_gain=0.0, heartbeat_seconds=0.002, moves_in_flight=4)
LIMITS = Limits(
    planning_steps=16,
    moving_steps=16,
    backoff_steps=12,
    longest_backoff_steps=48,
    stalled_steps=16,
    planning_seconds=0.4,
    moving_seconds=0.4,
    stalled_seconds=0.4,
)
_HIDDEN = 16
_TOKENS_AT_MOST = 32
_SHIFT_STEPS = 24
"""Another expert becomes hot after so many steps."""


class ErraticLink(GroupLink):
    """A link whose calls begin late, by up to ``longest_seconds``; set to 0 it is as any other."""

    def __init__(self, group: dist.ProcessGroup, seed: int) -> None:
        super().__init__(group)
        self._rng = np.random.default_rng([seed, self.rank])
        self._longest = [0.0]  # shared with the links made in its place

    @property
    def longest_seconds(self) -> float:
        return self._longest[0]

    @longest_seconds.setter
    def longest_seconds(self, seconds: float) -> None:
        self._longest[0] = seconds

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        self._delay()
        return super().all_gather(words_W, out)

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        self._delay()
        return super().broadcast(data, size, source)

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        time.sleep(self.longest_seconds)
        super().exchange(sends, receives)

    def _delay(self) -> None:
        if self.longest_seconds:
            time.sleep(self._rng.random() * self.longest_seconds)


class SoakEngine:
    """One rank. Every step is computed twice: routed by the balancer over all ranks, and on this rank alone
    from weights that nobody moves. All that it draws follows from ``seed``. ``transport``: another than the
    balancer's own shows that what is wrong is seen."""

    def __init__(self, seed: int, transport: MakeTransport = HostTransport) -> None:
        self.rank, self._seed = dist.get_rank(), seed
        alone = [dist.new_group([rank], backend="gloo") for rank in range(RANKS)]
        self._alone = alone[self.rank]
        world = dist.group.WORLD
        assert world is not None, "the default group was initialised"
        self._world = world
        self.version = 0
        self._loaded = _draw_weights(seed, self.version)
        first = self.rank * TOPOLOGY.slots_per_rank
        self._held = np.arange(first, first + TOPOLOGY.slots_per_rank) % SHAPE.experts
        self._weights: list[dict[str, torch.Tensor | list[torch.Tensor]]] = [
            {"weight": weight[self._held].clone(), "scale": [row.clone() for row in scale[self._held]]}
            for weight, scale in zip(*self._loaded, strict=True)
        ]
        self.link = ErraticLink(dist.new_group(backend="gloo"), seed)
        self.balancer = Balancer(
            SHAPE,
            TOPOLOGY,
            group=self.link,
            weights=self._weights,
            config=CONFIG,
            limits=LIMITS,
            transport=transport,
        )
        self.windows: deque[HeatWindow] = deque()
        self.balancer.on_window(self.windows.append)
        # Counts of all steps so far, behind each step since the last window that was checked.
        self.first_step = self.steps = 0
        self.counted: deque[Int64Array] = deque([np.zeros((2, SHAPE.layers, SHAPE.experts), np.int64)])
        self.tokens = 0
        self.wrong_tokens = 0
        self.dawdle_seconds = 0.0

    def step(self) -> Statistics:
        """One forward pass; what the balancer says of itself after it."""
        rng = np.random.default_rng([self._seed, self.rank, self.steps])
        tokens = int(rng.integers(0, _TOKENS_AT_MOST + 1))
        decode = int(rng.integers(0, tokens + 1))
        hidden_TH = torch.from_numpy(rng.standard_normal((tokens, _HIDDEN), np.float32))
        weights_TK = torch.from_numpy(rng.random((tokens, SHAPE.top_k), np.float32))
        counts_KLE = np.zeros((2, SHAPE.layers, SHAPE.experts), np.int64)
        ours_TH = alone_TH = hidden_TH
        with self.balancer.step(tokens, num_decode_tokens=decode):
            for layer in range(SHAPE.layers):
                ids_TK = self._choose(rng, tokens, layer)
                counts_KLE[1, layer] = np.bincount(ids_TK[:decode].ravel(), minlength=SHAPE.experts)
                counts_KLE[0, layer] = np.bincount(ids_TK[decode:].ravel(), minlength=SHAPE.experts)
                ids = torch.from_numpy(ids_TK)
                slots = self.balancer.route(layer, ids)
                ours_TH = self._balanced(layer, ours_TH, slots, weights_TK)
                alone_TH = self._unbalanced(layer, alone_TH, ids, weights_TK)
        self.counted.append(self.counted[-1] + counts_KLE)
        self.steps += 1
        self.tokens += tokens
        self.wrong_tokens += int((ours_TH != alone_TH).any(dim=1).sum())
        if self.dawdle_seconds:
            time.sleep(rng.random() * self.dawdle_seconds)
        return self.balancer.statistics()

    def reload(self) -> None:
        """The engine's weights become others, those without balancing too. On every rank, between steps."""
        self.version += 1
        self._loaded = weight_LEHH, scale_LEH = _draw_weights(self._seed, self.version)
        pairs = [(layer, expert) for layer in range(SHAPE.layers) for expert in range(SHAPE.experts)]
        self.balancer.reload(
            {pair: {"weight": weight_LEHH[pair], "scale": scale_LEH[pair]} for pair in pairs}
        )

    def close(self) -> None:
        self.balancer.close()

    def _choose(self, rng: np.random.Generator, tokens: int, layer: int) -> Int64Array:
        """Distinct experts for each token; one is in nearly all."""
        heat_E = np.ones(SHAPE.experts)
        heat_E[(self.steps // _SHIFT_STEPS * 5 + 3 * layer) % SHAPE.experts] = 40
        order_TE = np.argsort(rng.random((tokens, SHAPE.experts)) ** (1 / heat_E), axis=1)
        return np.ascontiguousarray(order_TE[:, -SHAPE.top_k :])

    def _balanced(
        self, layer: int, hidden_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        weights = self._weights[layer]
        return dispatch_tokens(
            hidden_TH,
            slots_TK,
            weights_TK,
            lambda tiles, slot: _expert(tiles, weights["weight"][slot], weights["scale"][slot]),
            ranks=RANKS,
            slots_per_rank=TOPOLOGY.slots_per_rank,
            group=self._world,
        ).output

    def _unbalanced(
        self, layer: int, hidden_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        weight_LEHH, scale_LEH = self._loaded
        return dispatch_tokens(
            hidden_TH,
            ids_TK,
            weights_TK,
            lambda tiles, expert: _expert(tiles, weight_LEHH[layer, expert], scale_LEH[layer, expert]),
            ranks=1,
            slots_per_rank=SHAPE.experts,
            group=self._alone,
        ).output


def _expert(tiles: torch.Tensor, weight_HH: torch.Tensor, scale_H: torch.Tensor) -> torch.Tensor:
    return torch.tanh(torch.bmm(tiles, weight_HH.expand(len(tiles), -1, -1)) * scale_H)


def _draw_weights(seed: int, version: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed % 2**31 * 1000 + version)
    shape = (SHAPE.layers, SHAPE.experts, _HIDDEN)
    return torch.randn((*shape, _HIDDEN), generator=generator), torch.rand(shape, generator=generator)
