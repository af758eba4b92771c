"""What a load is for the mind, of all kinds of tokens together and of each alone."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.config import Config
from isotherm.planner.outlook.outlook import Glimpse
from isotherm.planner.served.objective import NearLoad, Objective, ReadLoad, TokenLoad
from isotherm.topology import Topology
from isotherm.window import KINDS, HeatWindow


def kind_weights(config: Config, kinds: int) -> FloatArray:
    """What a token of each kind weighs; 1 where the kinds are not those of `window.KINDS`."""
    if kinds != len(KINDS):
        return np.ones(kinds)
    return np.array([config.prefill_weight, config.decode_weight])


def loads_of(
    topology: Topology,
    config: Config,
    glimpses: tuple[Glimpse, ...],
    window: HeatWindow,
    weight_K: FloatArray,
) -> tuple[Objective, tuple[Objective, ...]]:
    """What a load is, of all kinds together and of each alone: tokens, near ones where dispatch prefers them
    and windows tell where they are; and, where it was counted when experts were active, the reads that decode
    makes."""
    tokens = TokenLoad(topology)
    if config.split == "near" and window.source_heat_NLE is not None:
        tokens = NearLoad.of(topology, window.source_heat_NLE, config.locality_slack)
    seen = [(g.heat_KLE, g.active_LE) for g in glimpses if g.active_LE is not None]
    if config.objective == "tokens" or not seen:
        return tokens, (tokens,) * len(weight_K)
    heat_KLE, active_LE = (np.asarray(sum(each)) for each in zip(*seen, strict=True))
    # Kinds that are not those of `window.KINDS` are taken for decode.
    reads = [kind for kind in range(len(weight_K)) if len(weight_K) != len(KINDS) or KINDS[kind] == "decode"]
    load = ReadLoad.of(topology, heat_KLE, active_LE, reads, weight_K, tokens_per_read=config.tokens_per_read)
    return load, tuple(load.alone() if kind in reads else tokens for kind in range(len(weight_K)))
