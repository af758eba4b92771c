"""Isotherm inside vLLM: its expert balancing planned by Isotherm, and heat observed beside the engine.

vLLM loads `register` in each of its processes, through the entry point group ``vllm.general_plugins``.
Without the variables that `isotherm.engines.vllm.settings` reads it does nothing.
"""

from isotherm.engines.vllm.plugin import register

__all__ = ["register"]
