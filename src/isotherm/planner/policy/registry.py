"""Policies by name: ours, and those that other packages offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from isotherm.planner.policy.baselines import place_random, place_static
from isotherm.planner.policy.deepseek import place_deepseek
from isotherm.planner.policy.flash import place_flash
from isotherm.planner.policy.plugins import Plugins
from isotherm.planner.policy.swift import place_swift
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.served import place_for_engine

Policy: TypeAlias = Callable[[PlanRequest], np.ndarray]
"""Answers with the expert of each slot, integer [layers, slots]. Deterministic: every rank may ask. What it
answers is checked, and refused where it breaks an invariant; ``max_moves`` is kept for it, layer by
layer, where it does not keep it itself."""

_POLICIES: Plugins[Policy] = Plugins(
    "policy",
    "isotherm.policies",
    {
        "incremental": place_for_engine,
        "deepseek": place_deepseek,
        "swift": place_swift,
        "flash": place_flash,
        "static": place_static,
        "random": place_random,
    },
)


def policies() -> tuple[str, ...]:
    """The names of all policies, ours first."""
    return _POLICIES.names()


def get_policy(name: str) -> Policy:
    """The policy of that name; ours cannot be replaced.

    Raises:
        ValueError: there is none, or the package that offers it cannot be loaded.
    """
    return _POLICIES.get(name)
