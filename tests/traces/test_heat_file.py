"""Heat files: what is written is read, whatever ends the writer, and nothing else is."""

from __future__ import annotations

import json
import os
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import HEADER, TOPOLOGY, a_placement, a_window, same_window
from safetensors.numpy import load

from isotherm.placement import Placement
from isotherm.topology import MoEShape
from isotherm.traces.chunks import pack_chunk
from isotherm.traces.files import write_heat
from isotherm.traces.header import HeatHeader
from isotherm.traces.planes import deflate_counts, inflate_counts
from isotherm.traces.recorder import HeatWriter
from isotherm.traces.stored import is_heat_file, read_heat_file
from isotherm.traces.trace import HeatTrace
from isotherm.window import HeatWindow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.heat"


def record(path: Path, count: int, **options: object) -> None:
    with HeatWriter(path, HEADER, **options) as writer:
        for number in range(count):
            writer.append(a_window(number, slices=1 + number % 3, loads=number % 2 == 0))


def test_what_is_written_is_read_in_any_order(path: Path) -> None:
    record(path, 5)
    trace = read_heat_file(path)
    assert trace.header == HEADER
    assert trace.header.library.startswith("isotherm")
    assert trace.notes == ()
    expected = [a_window(number, slices=1 + number % 3, loads=number % 2 == 0) for number in range(5)]
    assert all(same_window(trace[index], expected[index]) for index in (3, 0, 4, -1, 2))
    assert all(same_window(*pair) for pair in zip(trace, expected, strict=True))
    assert [window.start_step for window in trace[1:3]] == [10, 20]
    assert (trace.heat_LE == sum(window.heat_LE for window in expected)).all()


def on_request(number: int) -> HeatWindow:
    """A window of 12 steps with counts of active steps and of nodes."""
    window, rng = a_window(number), np.random.default_rng(number)
    source_NLE = np.stack([window.heat_LE // 3, window.heat_LE - window.heat_LE // 3])
    active_LE = np.minimum(rng.integers(0, 3, window.heat_LE.shape), window.heat_LE)
    return replace(window, active_steps_LE=active_LE, source_heat_NLE=source_NLE)


def test_counts_on_request_are_kept_and_added_up(path: Path) -> None:
    windows = [on_request(number) for number in range(3)]
    with HeatWriter(path, HEADER) as writer:
        for window in windows:
            writer.append(window)
    trace = read_heat_file(path)
    assert all(same_window(*pair) for pair in zip(trace, windows, strict=True))
    merged = trace.merged()
    assert (merged.active_steps_LE == sum(window.active_steps_LE for window in windows)).all()
    assert (merged.source_heat_NLE == sum(window.source_heat_NLE for window in windows)).all()
    with HeatWriter(path, HEADER, append=True) as writer:
        writer.append(a_window(3))
    mixed = read_heat_file(path).merged()
    assert (mixed.active_steps_LE, mixed.source_heat_NLE) == (None, None)
    assert mixed.slot_load_LGS is not None
    with pytest.raises(ValueError, match="heat from 1 nodes does not fit"):
        HEADER.check_window(replace(windows[0], source_heat_NLE=windows[0].heat_LE[None]))
    with pytest.raises(ValueError, match="give topology="):
        replace(HEADER, topology=None).check_window(replace(windows[0], slot_load_LGS=None))


def test_active_steps_are_not_added_up_over_a_restart() -> None:
    heat_KSLE = np.full((2, 1, 3, 8), 9)
    windows = [
        HeatWindow(heat_KSLE, None, (start, start + 4), [1, 1], HEADER.layer_ids, np.full((3, 8), 4))
        for start in (100, 104, 0)
    ]
    assert HeatTrace(HEADER, windows[:2]).merged().active_steps_LE.max() == 8
    assert HeatTrace(HEADER, windows).merged().active_steps_LE is None


def test_merged_slices_are_the_windows_in_order(path: Path) -> None:
    record(path, 7)
    trace = read_heat_file(path)
    window = trace.merged(slices=3)
    spans = [slice(0, 3), slice(3, 5), slice(5, 7)]
    for part, span in enumerate(spans):
        assert (window.heat_SLE[part] == sum(each.heat_LE for each in trace[span])).all()
    assert window.slice_steps == (0, 30, 50, trace[6].end_step)
    assert (trace.heat_SLE == [each.heat_LE for each in trace]).all()


def test_times_are_kept_and_checked(path: Path) -> None:
    with HeatWriter(path, HEADER) as writer:
        for number, time in enumerate((1_700_000_000.25, None, 1_700_000_009.5)):
            writer.append(a_window(number), unix_seconds=time)
    trace = read_heat_file(path)
    assert trace.times == (1_700_000_000.25, None, 1_700_000_009.5)
    write_heat(trace, path.with_name("copy.heat"))
    assert read_heat_file(path.with_name("copy.heat")).times == trace.times
    with pytest.raises(ValueError, match="2 times do not fit 3 windows"):
        replace(trace, times=(1.0, 2.0))
    for wrong in (-1.0, float("nan"), 1e12):
        with HeatWriter(path, HEADER, append=True) as writer:
            writer.append(a_window(3), unix_seconds=wrong)
        with pytest.raises(ValueError, match="must be seconds since 1970"):
            read_heat_file(path)
        data = path.with_name("copy.heat").read_bytes()
        path.write_bytes(data)
    record(path.with_name("none.heat"), 2)
    assert read_heat_file(path.with_name("none.heat")).times == ()


def test_merged_sums_all_and_has_loads_where_every_window_has(path: Path) -> None:
    windows = [a_window(number) for number in range(3)]
    merged = HeatTrace(HEADER, windows).merged()
    assert (merged.heat_KSLE[:, 0] == sum(window.heat_KSLE.sum(axis=1) for window in windows)).all()
    assert (merged.slot_load_LGS == sum(window.slot_load_LGS for window in windows)).all()
    assert (merged.tokens_K == sum(window.tokens_K for window in windows)).all()
    assert merged.slice_steps == (0, 22)
    for position in range(3):
        mixed = [a_window(number, loads=number != position) for number in range(3)]
        assert HeatTrace(HEADER, mixed).merged().slot_load_LGS is None


@pytest.mark.parametrize("fill", [b"", b"\0" * 700])
def test_a_file_cut_at_any_byte_is_read_up_to_its_last_complete_window(path: Path, fill: bytes) -> None:
    record(path, 2)
    kept = path.stat().st_size
    record(path, 1, append=True)
    whole = path.read_bytes()
    for length in range(kept, len(whole)):
        path.write_bytes(whole[:length] + fill)
        trace = read_heat_file(path)
        assert len(trace) == 2, length
        assert bool(trace.notes) == (length + len(fill) > kept)
    path.write_bytes(whole)
    assert len(read_heat_file(path)) == 3


def test_every_cut_of_the_beginning_is_refused_with_file_and_place(path: Path) -> None:
    record(path, 1)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"some\.heat: "):
            read_heat_file(path)


@pytest.mark.parametrize("place", [3, 6])
def test_damage_in_the_middle_is_no_end_and_append_cuts_nothing_off(path: Path, place: int) -> None:
    record(path, 1)
    second = path.stat().st_size
    record(path, 3, append=True)
    damaged = bytearray(path.read_bytes())
    damaged[second + place] ^= 0x01  # the length of the header: far behind the end of the file, or beyond all
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"some\.heat: byte {second}: .*(others follow|safetensors allows)"):
        read_heat_file(path)
    with pytest.raises(ValueError, match=rf"some\.heat: byte {second}: "):
        HeatWriter(path, HEADER, append=True)
    assert path.read_bytes() == damaged


def test_zeros_where_the_last_window_should_be_are_left_out(path: Path) -> None:
    record(path, 3)
    whole = bytearray(path.read_bytes())
    whole[-40:] = bytes(40)
    path.write_bytes(whole)
    assert len(read_heat_file(path)) == 2


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_no_count(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("heat") / "some.heat"
    record(path, 2)
    expected = [window.heat_KSLE.copy() for window in read_heat_file(path)]
    damaged = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    found, said = [], str(path)
    try:
        found = list(read_heat_file(path))
    except ValueError as error:
        said = str(error)
    assert said.startswith(str(path))
    for window, heat_KSLE in zip(found, expected, strict=False):
        assert (window.heat_KSLE == heat_KSLE).all()


def test_recording_goes_on_behind_the_last_complete_window(path: Path) -> None:
    record(path, 2)
    path.write_bytes(path.read_bytes()[:-3])
    with HeatWriter(path, HEADER, append=True) as writer:
        writer.append(a_window(7))
    trace = read_heat_file(path)
    assert [window.start_step for window in trace] == [0, 70]
    assert trace.notes == ()


def test_append_begins_a_file_that_is_not_there(path: Path) -> None:
    record(path, 1, append=True)
    assert len(read_heat_file(path)) == 1


def test_nothing_is_overwritten_unasked_nor_continued_with_another_header(path: Path) -> None:
    record(path, 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"some\.heat: is there already: .*append=True"):
        HeatWriter(path, HEADER)
    with pytest.raises(ValueError, match=r"some\.heat: header: .*another file"):
        HeatWriter(path, replace(HEADER, model="another"), append=True)
    with pytest.raises(ValueError, match=r"cannot be written: No such file"):
        HeatWriter(path.parent / "none" / "some.heat", HEADER)
    assert path.read_bytes() == before


def test_a_window_that_fails_halfway_leaves_the_file_as_it_was(path: Path, monkeypatch) -> None:
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 200:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with HeatWriter(path, HEADER) as writer:
        writer.append(a_window(0))
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            writer.append(a_window(1))
        assert path.read_bytes() == before
        monkeypatch.undo()
        writer.append(a_window(2))
    assert [window.start_step for window in read_heat_file(path)] == [0, 20]


def test_windows_of_another_model_are_refused_and_so_is_a_closed_writer(path: Path) -> None:
    other = HeatHeader.of(MoEShape(3, 8, 2))
    few = HeatHeader.of(MoEShape(2, 8, 2))
    with HeatWriter(path, HEADER) as writer:
        with pytest.raises(ValueError, match="layer_ids"):
            writer.append(a_window(header=other))
        with pytest.raises(ValueError, match="2 layers"):
            writer.append(a_window(header=few))
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(a_window())
    with HeatWriter(path.with_name("loads.heat"), other) as writer:
        loads = replace(a_window(), layer_ids=(0, 1, 2))
        with pytest.raises(ValueError, match="topology="):
            writer.append(loads)
        with pytest.raises(ValueError, match="topology="):
            writer.set_placement(a_placement())


def test_placements_are_in_force_from_the_window_that_follows(path: Path) -> None:
    first, second = a_placement(1), a_placement(2)
    with HeatWriter(path, HEADER, placement=first) as writer:
        writer.append(a_window(0))
        writer.append(a_window(1))
        writer.set_placement(second)
        writer.append(a_window(2))
        with pytest.raises(ValueError, match="does not fit"):
            writer.set_placement(Placement(np.arange(16)[None] % 8, 8))
    trace = read_heat_file(path)
    assert [trace.placement_in_force(index) for index in range(3)] == [first, first, second]
    record(path.with_name("none.heat"), 1)
    assert read_heat_file(path.with_name("none.heat")).placement_in_force(0) is None


def test_windows_from_many_threads_are_all_whole(path: Path) -> None:
    with HeatWriter(path, HEADER) as writer:
        threads = [
            threading.Thread(
                target=lambda first=first: [writer.append(a_window(first + i)) for i in range(20)]
            )
            for first in range(0, 80, 20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace = read_heat_file(path)
    assert sorted(window.start_step for window in trace) == [10 * number for number in range(80)]
    assert all(same_window(window, a_window(window.start_step // 10)) for window in trace)


def test_each_chunk_is_a_whole_safetensors_file(path: Path) -> None:
    record(path, 1, placement=a_placement())
    data, found = path.read_bytes(), []
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
        found.append((header["__metadata__"]["isotherm"], load(data[:end])))
        data = data[end:]
    assert [role for role, _ in found] == ["header", "placement", "window"]
    assert (found[1][1]["slot_to_expert_LP"] == a_placement().slot_to_expert).all()
    window = a_window(0, slices=1)
    heat_KSLE = inflate_counts(found[2][1]["heat_KSLE"], window.heat_KSLE.shape)
    assert (heat_KSLE == window.heat_KSLE).all()


@given(st.lists(st.integers(0, 2**63 - 1), max_size=50))
def test_counts_come_back_as_they_were(values: list[int]) -> None:
    counts = np.array(values, np.int64).reshape(1, -1)
    assert (inflate_counts(deflate_counts(counts), counts.shape) == counts).all()


def test_a_bomb_takes_no_more_memory_than_the_shape_allows() -> None:
    bomb = deflate_counts(np.zeros(4_000_000, np.int64))
    assert bomb.nbytes < 100_000
    with pytest.raises(ValueError, match="counts of shape"):
        inflate_counts(bomb, (2, 2))
    with pytest.raises(ValueError, match="counts of shape"):
        inflate_counts(bomb[:-9], (4_000_000,))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"schema_version": 2}, "schema_version=2 is unknown"),
        ({"experts": True}, "experts=True"),
        ({"experts": 0}, "experts=0"),
        ({"layer_ids": []}, "layer_ids"),
        ({"layer_ids": [3, 1, 2]}, "layer_ids"),
        ({"kinds": "ab"}, "kinds"),
        ({"topology": {"ranks": 4}}, "topology"),
        ({"topology": {"ranks": 1, "slots_per_rank": 2, "nodes": 1}}, "2 slots hold fewer"),
        ({"model_layers": 5}, "model_layers=5"),
        ({"model": 3}, "model=3"),
    ],
)
def test_a_header_that_breaks_a_rule_is_told(path: Path, changed: dict[str, object], named: str) -> None:
    values = {**HEADER.as_dict(), **changed}
    path.write_bytes(pack_chunk({}, {"isotherm": "header", "header": json.dumps(values)}))
    with pytest.raises(ValueError, match=rf"some\.heat: header: .*{named}"):
        read_heat_file(path)


def test_headers_without_topology_or_top_k_are_kept(path: Path) -> None:
    header = HeatHeader((0, 4), 5, kinds=("all",), model_layers=7)
    with HeatWriter(path, header) as writer:
        writer.append(a_window(header=header))
    assert read_heat_file(path).header == header


def test_other_files_are_none(path: Path) -> None:
    assert not is_heat_file(path)
    for data in (b"", b"\0" * 64, b"{}", pack_chunk({"a": np.zeros(3)}, {}), os.urandom(4096)):
        path.write_bytes(data)
        assert not is_heat_file(path)
        with pytest.raises(ValueError, match=r"some\.heat: byte 0"):
            read_heat_file(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"some\.heat: cannot be read: No such file"):
        read_heat_file(path)
    record(path, 0)
    with pytest.raises(ValueError, match="no complete window"):
        read_heat_file(path)


def test_an_hour_of_deepseek_v3_fits_tens_of_megabytes(path: Path) -> None:
    # 281 windows of 256 steps of 50 ms are an hour; 2 kinds x 2 slices, and slot loads on 32 ranks.
    rng = np.random.default_rng(0)
    header = HeatHeader.of(
        MoEShape(58, 256, 8, tuple(range(3, 61))), replace(TOPOLOGY, ranks=32, slots_per_rank=9)
    )
    weights_LE = np.exp(rng.normal(0, 0.7, (58, 256)))
    heat_KSLE = rng.poisson(4096 * weights_LE / weights_LE.mean(axis=1, keepdims=True), (2, 2, 58, 256))
    window = replace(
        a_window(header=header), heat_KSLE=heat_KSLE, slot_load_LGS=rng.poisson(14563, (58, 32, 9))
    )
    with HeatWriter(path, header) as writer:
        before = path.stat().st_size
        writer.append(window)
    assert 281 * (path.stat().st_size - before) < 40e6
