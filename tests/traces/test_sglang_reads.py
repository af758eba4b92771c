"""SGLang's own readers and ours, on the same files, where the sglang package is installed.

Its package imports much that only a server has, so the files that are asked are loaded alone, beside stand-
ins for what tells them of the server (`peers`). `make test-readers` installs the package.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from peers import load, stand_in
from test_formats import EXPERTS, LAYERS, MODEL_LAYERS, RANKS, SLOTS, a_map, records, save_records

from isotherm.placement import Placement
from isotherm.traces.files import read_heat, read_placement, write_placement


def server(monkeypatch: pytest.MonkeyPatch, location: Path) -> None:
    """A server that is started with ``--init-expert-location`` on ``RANKS`` ranks of this model."""
    moe = SimpleNamespace(
        init_expert_location=str(location), ep_num_redundant_experts=SLOTS - EXPERTS, ep_join_mode="none",
        ep_dispatch_algorithm="dynamic", moe_a2a_backend="none",
    )  # fmt: skip
    parallel = SimpleNamespace(ep_size=RANKS, elastic_ep_initial_size=None, nnodes=1, tp_size=RANKS)
    stand_in(
        monkeypatch, "sglang.srt.runtime_context",
        get_exec=lambda: SimpleNamespace(moe=moe), get_parallel=lambda: parallel,
        get_device=lambda: SimpleNamespace(device="cpu"), get_resources=SimpleNamespace,
    )  # fmt: skip
    stand_in(monkeypatch, "sglang.srt.elastic_ep.elastic_ep", elastic_expanded_world_enabled=lambda: False)


def test_sglang_loads_the_placement_that_we_write(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "location.json"
    placement = Placement(a_map(), EXPERTS)
    write_placement(placement, path, format="sglang", layer_ids=LAYERS, model_layers=MODEL_LAYERS)
    server(monkeypatch, path)
    stand_in(monkeypatch, "sglang.srt.eplb.eplb_algorithms")
    module = load(monkeypatch, "sglang", "sglang.srt.eplb.expert_location")
    config = module.ModelConfigForExpertLocation(num_layers=MODEL_LAYERS, num_logical_experts=EXPERTS)
    model = SimpleNamespace(get_model_config_for_expert_location=lambda _: config)
    stand_in(monkeypatch, "sglang.srt.model_loader", get_model_architecture=lambda _: (model, None))
    loaded = module.compute_initial_expert_location_metadata(SimpleNamespace(hf_config=None), 0)
    map_LP = loaded.physical_to_logical_map.numpy()
    assert (map_LP[list(LAYERS)] == placement.slot_to_expert).all()
    assert loaded.num_layers == MODEL_LAYERS
    for row, layer in enumerate(LAYERS):
        for expert in range(EXPERTS):
            slots = sorted(loaded.logical_to_all_physical(layer, expert))
            assert slots == np.flatnonzero(placement.slot_to_expert[row] == expert).tolist()
    assert read_placement(path, moe_layers=LAYERS).placement == placement


def test_sglang_and_we_read_the_same_of_per_pass_dumps(tmp_path: Path, monkeypatch) -> None:
    map_LP, rng = a_map(), np.random.default_rng(3)
    counts = rng.integers(1, 9, (RANKS, 3, len(LAYERS), SLOTS))
    for rank, counts_NLP in enumerate(counts):
        save_records(
            tmp_path / f"expert_distribution_recorder_1_{rank}.pt", records(counts_NLP, rank), map_LP
        )
    stand_in(monkeypatch, "tqdm", tqdm=list)
    server(monkeypatch, tmp_path)
    stand_in(monkeypatch, "sglang.srt.eplb.eplb_algorithms")
    load(monkeypatch, "sglang", "sglang.srt.eplb.expert_location")
    stand_in(
        monkeypatch,
        "sglang.srt.eplb.expert_distribution",
        _convert_global_physical_count_to_logical_count=None,
    )
    reader = load(monkeypatch, "sglang", "sglang.srt.eplb.eplb_simulator.reader")
    theirs = reader.read_mode_per_pass(tmp_path)
    ours = read_heat(tmp_path, moe_layers=LAYERS, rows_per_window=1)
    assert (theirs["last_physical_to_logical_map"].numpy() == map_LP).all()
    for window, counts_LP in zip(ours, theirs["global_physical_count_of_forward_pass"].numpy(), strict=True):
        for layer in range(len(LAYERS)):
            by_expert_E = np.bincount(map_LP[layer], weights=counts_LP[layer], minlength=EXPERTS)
            assert (window.heat_LE[layer] == by_expert_E).all()
