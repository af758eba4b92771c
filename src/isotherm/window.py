"""Heat in a span of steps, and the one definition of imbalance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray, Int64Array, frozen

KINDS = ("prefill", "decode")
"""The kinds of tokens that are counted apart, in the order of the kind axis ``K``."""


@dataclass(frozen=True, eq=False)
class HeatWindow:
    """The difference of two snapshots taken at the same step on all ranks, summed over the ranks.

    Attributes:
        heat_KSLE: int64, tokens per kind, slice, layer and logical expert.
        slot_load_LGS: int64, tokens that each slot received, all kinds: [layers, ranks, slots]; None where
            experts were counted and nobody knows to which slots their tokens went.
        slice_steps: the steps at the borders of the slices, ascending, one more than slices: slice
            ``i`` holds the steps ``slice_steps[i] <= step < slice_steps[i + 1]``.
        tokens_K: int64, tokens per kind, each counted once.
        layer_ids: the model's own numbers of the layers.
        active_steps_LE: int64, steps in which an expert had a token anywhere; None where nobody counted them.
            A collector knows them where one rank had all of an expert's tokens, and takes ranks to be
            independent where several had.
        source_heat_NLE: int64, heat by the node that owns the tokens; None where nobody told them apart.

    Raises:
        ValueError: shapes that do not fit together, or a negative count.
    """

    heat_KSLE: Int64Array
    slot_load_LGS: Int64Array | None
    slice_steps: tuple[int, ...]
    tokens_K: Int64Array
    layer_ids: tuple[int, ...]
    active_steps_LE: Int64Array | None = None
    source_heat_NLE: Int64Array | None = None

    def __post_init__(self) -> None:
        for name in ("heat_KSLE", "slot_load_LGS", "tokens_K", "active_steps_LE", "source_heat_NLE"):
            if getattr(self, name) is None:
                continue
            array = frozen(getattr(self, name), np.int64)
            if array.min(initial=0) < 0:
                raise ValueError(f"{name} holds {array.min()}: counts are not negative")
            object.__setattr__(self, name, array)
        kinds, slices, layers = self.heat_KSLE.shape[:3]
        if kinds != len(self.tokens_K) or slices != len(self.slice_steps) - 1:
            raise ValueError(
                f"heat of shape {self.heat_KSLE.shape} does not fit {len(self.tokens_K)} kinds and "
                f"slice_steps={self.slice_steps}"
            )
        loads = layers if self.slot_load_LGS is None else self.slot_load_LGS.shape[0]
        if loads != layers or len(self.layer_ids) != layers:
            raise ValueError(
                f"heat of {layers} layers does not fit slot loads of {loads} layers and "
                f"layer_ids={self.layer_ids}"
            )
        self._check_on_request()

    def _check_on_request(self) -> None:
        wanted = self.heat_KSLE.shape[2:]
        if self.active_steps_LE is not None:
            if self.active_steps_LE.shape != wanted:
                raise ValueError(
                    f"active_steps_LE has shape {self.active_steps_LE.shape}: give [layers, experts] {wanted}"
                )
            most = int(self.active_steps_LE.max(initial=0))
            if most > self.steps or (self.active_steps_LE > self.heat_LE).any():
                raise ValueError(
                    f"active_steps_LE holds up to {most}: an expert is active in at most the {self.steps} "
                    "steps of the window, and with a token in each"
                )
        if self.source_heat_NLE is not None and (
            self.source_heat_NLE.shape[1:] != wanted
            or not np.array_equal(self.source_heat_NLE.sum(axis=0), self.heat_LE)
        ):
            raise ValueError(
                f"source_heat_NLE of shape {self.source_heat_NLE.shape} does not add up, over its nodes, to "
                f"the heat of {wanted} [layers, experts]"
            )

    @property
    def heat_LE(self) -> Int64Array:
        """Tokens per layer and expert, all kinds and slices."""
        total_LE: Int64Array = self.heat_KSLE.sum(axis=(0, 1))
        return total_LE

    @property
    def heat_SLE(self) -> Int64Array:
        """Tokens per slice, layer and expert, all kinds."""
        total_SLE: Int64Array = self.heat_KSLE.sum(axis=0)
        return total_SLE

    @property
    def load_LG(self) -> Int64Array:
        """Tokens that each rank carried, int64 [layers, ranks].

        Raises:
            ValueError: the window knows no loads.
        """
        if self.slot_load_LGS is None:
            raise ValueError(
                "this window knows no loads: its tokens were counted by expert, not by slot; collect with "
                "source='received', or let a Balancer map them"
            )
        total_LG: Int64Array = self.slot_load_LGS.sum(axis=2)
        return total_LG

    @property
    def start_step(self) -> int:
        return self.slice_steps[0]

    @property
    def end_step(self) -> int:
        """The first step after the window."""
        return self.slice_steps[-1]

    @property
    def steps(self) -> int:
        return self.end_step - self.start_step


def layer_imbalance(load_LG: FloatArray | Int64Array) -> FloatArray:
    """Max over ranks / mean over ranks of load, float64 [layers], >= 1; 1 for a layer without load."""
    load_LG = np.asarray(load_LG, np.float64)
    mean_L = load_LG.mean(axis=-1)
    out_L: FloatArray = np.divide(load_LG.max(axis=-1), mean_L, out=np.ones_like(mean_L), where=mean_L > 0)
    return out_L


def overall_imbalance(load_LG: FloatArray | Int64Array) -> float:
    """The sum over layers of the hottest rank over the sum of the means: what a step pays, >= 1."""
    load_LG = np.asarray(load_LG, np.float64)
    mean = load_LG.mean(axis=-1).sum()
    return float(load_LG.max(axis=-1).sum() / mean) if mean > 0 else 1.0


@dataclass(frozen=True)
class ImbalanceSummary:
    """Imbalance over layers, never one silent mean."""

    overall: float
    p50: float
    p95: float
    worst: float
    mean: float
    worst_layer: int

    @classmethod
    def of(cls, load_LG: FloatArray | Int64Array, layer_ids: tuple[int, ...]) -> ImbalanceSummary:
        """The summary of the loads int or float [layers, ranks]; the worst layer by its own number."""
        values_L = layer_imbalance(load_LG)
        return cls(
            overall=overall_imbalance(load_LG),
            p50=float(np.percentile(values_L, 50)),
            p95=float(np.percentile(values_L, 95)),
            worst=float(values_L.max()),
            mean=float(values_L.mean()),
            worst_layer=layer_ids[int(values_L.argmax())],
        )
