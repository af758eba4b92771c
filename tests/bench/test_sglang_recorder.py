"""SGLang's recorder: measured where it can be called, told where it cannot."""

import sys
import types

import pytest
import torch

from isotherm.bench.sglang_recorder import find_recorder

NAME = "sglang.srt.eplb.expert_distribution"


class Gatherer:
    def __init__(self, metadata, rank):
        self.shape = metadata.num_layers, metadata.num_physical_experts
        self.rank = rank
        self._data = torch.zeros(self.shape, dtype=torch.int32)

    def on_select_experts(self, layer_idx, topk_ids):
        self._data[layer_idx] += torch.bincount(topk_ids.flatten(), minlength=self.shape[1])


@pytest.fixture
def installed(monkeypatch):
    """A package of that name whose recorder is ``Gatherer``."""
    recorder = types.ModuleType(NAME)
    recorder._SelectExpertsSinglePassGatherer = Gatherer
    version = types.ModuleType("sglang.version")
    version.__version__ = "1.2.3"
    for name in ("sglang", "sglang.srt", "sglang.srt.eplb"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, NAME, recorder)
    monkeypatch.setitem(sys.modules, "sglang.version", version)
    return recorder


def test_the_recorder_is_called_with_a_layer_and_its_ids(installed):
    record, note = find_recorder(2, 5)
    assert "SGLang 1.2.3" in note
    record(1, torch.tensor([[0, 4], [4, 2]]))
    gatherer = record.__self__
    assert gatherer.rank == 0
    assert gatherer._data.tolist() == [[0] * 5, [1, 0, 1, 0, 2]]


def test_what_another_release_changed_is_told(installed):
    del installed._SelectExpertsSinglePassGatherer
    record, note = find_recorder(2, 5)
    assert record is None
    assert "cannot be called here" in note


def test_without_the_package_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, NAME, None)
    record, note = find_recorder(2, 5)
    assert record is None
    assert "sglang is not installed" in note
