"""The door through which vLLM finds Isotherm: the entry point group ``vllm.general_plugins``.

A package of its own, since vLLM opens it in each of its processes, whether Isotherm is asked for or not:
nothing else is imported unless it is.
"""

from __future__ import annotations

import logging
import os

__all__ = ["register"]

VARIABLES = ("ISOTHERM_VLLM", "ISOTHERM_RECORD", "ISOTHERM_OBSERVE")


def register() -> None:
    """Puts Isotherm into this process of vLLM where one of ``VARIABLES`` is set. Called again it does nothing
    more, and it never raises."""
    if not any(os.environ.get(name) for name in VARIABLES):
        return
    try:
        from isotherm.engines.vllm.plugin import put_into_vllm

        put_into_vllm(os.environ)
    except Exception:
        logging.getLogger("isotherm").exception("isotherm: vLLM goes on without Isotherm")
