"""Isotherm inside vLLM: its expert balancing planned by Isotherm, and heat observed beside the engine.

vLLM comes in through `isotherm_vllm.register`, in each of its processes; `isotherm.engines.vllm.settings` has
what the environment may ask for.
"""

from isotherm.engines.vllm.placing import place_experts

__all__ = ["place_experts"]
