"""Isotherm put into a process of vLLM, as its environment asks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from llvmlite.binding import ffi  # type: ignore[import-untyped]

from isotherm.engines.vllm.agreement import is_first_rank
from isotherm.engines.vllm.handed import HandedWindows
from isotherm.engines.vllm.placing import warm_up
from isotherm.engines.vllm.policy import EplbPlanner
from isotherm.engines.vllm.settings import VllmSettings

logger = logging.getLogger("isotherm")


def put_into_vllm(environment: Mapping[str, str]) -> None:
    """Replaces vLLM's policy, and observes its workers, where the environment asks for it. Called again it
    does nothing more.

    Kernels are compiled here, or loaded, so that no step of the engine waits for that.

    Raises:
        ValueError: a setting that is not what it should be; nothing is changed then.
    """
    _let_vllm_look_at_llvmlite()
    _speak_through_vllm()
    settings = VllmSettings.of(environment)
    if settings.plans:
        _plan(settings)
    if settings.observed is not None:
        from isotherm.engines.vllm.workers import observe_workers

        observe_workers(settings)


def _let_vllm_look_at_llvmlite() -> None:
    """On a CPU vLLM looks at the ``__dict__`` of all that modules hold, to put kernels of its own in place of
    others, and takes it for a dictionary. llvmlite's library, below numba, makes a function of any name that
    it is asked for, this one too, unless it knows the name already."""
    known = getattr(ffi.lib, "_fntab", None)
    if isinstance(known, dict):
        known.setdefault("__dict__", {})


def _speak_through_vllm() -> None:
    """What Isotherm says goes where vLLM's own log goes, also where vLLM sets that up later, unless the user
    has sent it elsewhere."""
    if not logger.handlers:
        logger.parent = logging.getLogger("vllm")


def _plan(settings: VllmSettings) -> None:
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    stock = EPLB_POLICIES["default"]
    if hasattr(stock, "planner"):
        return
    warm_up()
    windows = HandedWindows(settings.handed, is_first_rank) if settings.handed is not None else None
    planner = EplbPlanner(stock, max_imbalance=settings.max_imbalance, windows=windows)
    EPLB_POLICIES["default"] = planner.as_policy()
    logger.info("isotherm: plans vLLM's expert balancing, up to an imbalance of %g", settings.max_imbalance)
