"""SGLang's own recorder of chosen experts, where that package is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import torch


def find_recorder(layers: int, slots: int) -> tuple[Callable[[int, torch.Tensor], object] | None, str]:
    """SGLang's gatherer of chosen experts on the CPU, as a call with layer and slots of its tokens, and a
    sentence on it; None where it cannot be had.

    Its class is no public name, so whatever another release changed is told, and is no error.
    """
    try:
        module = import_module("sglang.srt.eplb.expert_distribution")
        version = import_module("sglang.version").__version__
        metadata = SimpleNamespace(num_layers=layers, num_physical_experts=slots)
        gatherer = module._SelectExpertsSinglePassGatherer(metadata, 0)
        gatherer._data = gatherer._data.cpu()
    except ImportError as error:
        return None, f"sglang is not installed ({error}), so its recorder is not measured."
    except (AttributeError, TypeError, RuntimeError) as error:
        return None, f"sglang's recorder cannot be called here ({error}), and is not measured."
    return (
        gatherer.on_select_experts,
        f"sglang is the recorder of SGLang {version}, which counts and does not map.",
    )
