"""What each slot and each rank of a layer gets: evenly, or so that the hottest rank carries least."""

from __future__ import annotations

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, add_loads, new_layer, peak_of, split_evenly
from isotherm.planner.layers.level_kernels import level_out


@kernel
def make_layer(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Layer:
    """The layer with its loads settled."""
    layer = new_layer(slot_expert_P, heat_E, ranks, balanced)
    settle(layer)
    return layer


@kernel
def balanced_peak(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int) -> float:
    """The highest load under balanced shares, in the unit of heat, which must not be all zero."""
    mean = heat_E.sum() / ranks
    peak: float = peak_of(make_layer(slot_expert_P, heat_E / mean, ranks, True)) * mean
    return peak


@kernel
def settle(layer: Layer) -> None:
    """Brings tokens and loads to the layer's shares; balanced ones from tokens that add up."""
    if layer.balanced:
        add_loads(layer)
        level_out(layer)
        add_loads(layer)
    else:
        split_evenly(layer)
