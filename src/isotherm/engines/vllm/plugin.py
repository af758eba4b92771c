"""What vLLM calls in each of its processes."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isotherm.engines.vllm.settings import VllmSettings

logger = logging.getLogger("isotherm")

VARIABLES = ("ISOTHERM_VLLM", "ISOTHERM_RECORD", "ISOTHERM_OBSERVE")


def register() -> None:
    """Puts Isotherm where the environment asks for it. Called again it does nothing more.

    Kernels are compiled here, or loaded, so that no step of the engine waits for that. What goes wrong is
    told in the log, and leaves vLLM as it was.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        return
    try:
        _register()
    except Exception:
        logger.exception("isotherm: vLLM goes on without Isotherm")


def _register() -> None:
    from isotherm.engines.vllm.settings import VllmSettings

    _speak_through_vllm()
    settings = VllmSettings.of(os.environ)
    if settings.plans:
        _plan(settings)
    if settings.observed is not None:
        from isotherm.engines.vllm.workers import observe_workers

        observe_workers(settings)


def _speak_through_vllm() -> None:
    """What Isotherm says goes where vLLM's own log goes, unless the user has sent it elsewhere."""
    from vllm.logger import init_logger

    init_logger("vllm.isotherm")
    theirs = logging.getLogger("vllm")
    if not logger.hasHandlers():
        logger.handlers, logger.propagate = theirs.handlers, False
        logger.setLevel(theirs.level)


def _plan(settings: VllmSettings) -> None:
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    from isotherm.engines.vllm.handed import HandedWindows
    from isotherm.engines.vllm.placing import warm_up
    from isotherm.engines.vllm.policy import EplbPlanner

    stock = EPLB_POLICIES["default"]
    if hasattr(stock, "planner"):
        return
    warm_up()
    windows = HandedWindows(settings.handed, is_first_rank) if settings.handed is not None else None
    planner = EplbPlanner(stock, max_imbalance=settings.max_imbalance, windows=windows)
    EPLB_POLICIES["default"] = planner.as_policy()
    logger.info("isotherm: plans vLLM's expert balancing, up to an imbalance of %g", settings.max_imbalance)


def is_first_rank() -> bool:
    """Whether this process is the first of all ranks, or the only one."""
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0
