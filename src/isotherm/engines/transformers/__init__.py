"""Hugging Face MoE models made expert-parallel and balanced, through transformers' experts interface."""

from isotherm.engines.transformers.experts import moe_shape
from isotherm.engines.transformers.model import ExpertMeter, ExpertParallelModel, parallelize

__all__ = ["ExpertMeter", "ExpertParallelModel", "moe_shape", "parallelize"]
