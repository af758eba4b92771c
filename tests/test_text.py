"""The demo's text: the same bytes for every process, two kinds, and errors that help."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isotherm.arrays import FloatArray
from isotherm.demo.text import (
    LARGEST_FILE_BYTES,
    SMALLEST_FILE_BYTES,
    SMALLEST_TEXT_BYTES,
    Corpus,
    load_corpus,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


def frequencies(text: bytes) -> FloatArray:
    return np.bincount(np.frombuffer(text, np.uint8), minlength=256) / len(text)


def test_every_load_gives_the_same_text(corpus: Corpus) -> None:
    assert load_corpus() == corpus
    assert load_corpus(()) == corpus


def test_stdlib_gives_enough_of_prose_and_code(corpus: Corpus) -> None:
    assert corpus.kinds == ("prose", "code")
    assert all(100_000 < len(text) <= 2_000_000 for text in corpus.texts)


def test_kinds_differ_in_byte_distribution(corpus: Corpus) -> None:
    prose, code = (frequencies(text) for text in corpus.texts)
    assert np.abs(prose - code).sum() / 2 > 0.15  # of all bytes, so many are elsewhere


def test_code_holds_no_documentation(corpus: Corpus) -> None:
    code = corpus.texts[1]
    assert b"Metaclass for defining Abstract Base Classes" in corpus.texts[0]
    assert b"Metaclass for defining Abstract Base Classes" not in code
    assert not any(line.lstrip().startswith(b"#") for line in code.splitlines())


def test_text_names_no_folder_of_this_python(corpus: Corpus) -> None:
    assert all(os.fsencode(os.__file__) not in text for text in corpus.texts)


def test_batch_is_int64_bytes_of_the_text(corpus: Corpus) -> None:
    for kind, text in enumerate(corpus.texts):
        batch = corpus.batch(kind, 3, 1, seed=7, sequences=5, length=40)
        assert batch.shape == (5, 40)
        assert batch.dtype == np.int64
        assert all(row.astype(np.uint8).tobytes() in text for row in batch)


def test_batch_keeps_bytes_above_127() -> None:
    corpus = Corpus(("high",), (bytes([255]) * SMALLEST_TEXT_BYTES,))
    assert (corpus.batch(0, 0, 0, seed=0, sequences=1, length=8) == 255).all()


def test_batch_is_a_function_of_its_arguments(corpus: Corpus) -> None:
    def draw(kind: int, step: int, rank: int, seed: int) -> bytes:
        return corpus.batch(kind, step, rank, seed=seed, sequences=4, length=64).tobytes()

    arguments = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    first = [draw(*each) for each in arguments]
    assert first == [draw(*each) for each in arguments]
    assert len(set(first)) == len(first)


def test_batch_draws_up_to_the_whole_text() -> None:
    text = bytes(range(256)) * (SMALLEST_TEXT_BYTES // 256)
    batch = Corpus(("whole",), (text,)).batch(0, 0, 0, seed=0, sequences=2, length=len(text))
    assert [row.astype(np.uint8).tobytes() for row in batch] == [text, text]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kind": 2}, "kind=2"),
        ({"kind": -1}, "kind=-1"),
        ({"step": -1}, "step=-1"),
        ({"rank": -1}, "rank=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"sequences": 0}, "sequences=0"),
        ({"length": 0}, "length=0"),
        ({"length": 10**9}, "length=1000000000"),
    ],
)
def test_batch_refuses_what_it_cannot_draw(corpus: Corpus, changed: dict[str, int], named: str) -> None:
    arguments = {"kind": 0, "step": 0, "rank": 0, "seed": 0, "sequences": 1, "length": 8}
    with pytest.raises(ValueError, match=named):
        corpus.batch(**(arguments | changed))


@pytest.mark.parametrize(
    ("kinds", "texts"),
    [
        ((), ()),
        (("a",), ()),
        (("a", "a"), (b"x" * SMALLEST_TEXT_BYTES,) * 2),
        (("a",), (b"x" * (SMALLEST_TEXT_BYTES - 1),)),
    ],
)
def test_corpus_is_checked_at_construction(kinds: tuple[str, ...], texts: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"kind|text"):
        Corpus(kinds, texts)


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(i % 251 for i in range(size)))
    return path


def test_each_file_is_one_kind_by_its_name(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, SMALLEST_FILE_BYTES) for name in ("b.txt", "a.txt")]
    corpus = load_corpus(paths)
    assert corpus.kinds == ("b.txt", "a.txt")
    assert corpus.texts == tuple(path.read_bytes() for path in paths)


def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "a.txt", SMALLEST_FILE_BYTES) for folder in ("x", "y")]
    assert load_corpus(paths).kinds == tuple(str(path) for path in paths)


def test_one_file_alone_gives_its_halves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", SMALLEST_FILE_BYTES + 1)
    corpus = load_corpus([path])
    assert corpus.kinds == ("a.txt (first half)", "a.txt (second half)")
    assert b"".join(corpus.texts) == path.read_bytes()


def test_of_a_large_file_the_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    assert sum(map(len, load_corpus([path]).texts)) == LARGEST_FILE_BYTES


def missing(folder: Path) -> Path:
    return folder / "missing.txt"


def empty(folder: Path) -> Path:
    return write(folder / "empty.txt", 0)


def short(folder: Path) -> Path:
    return write(folder / "short.txt", SMALLEST_FILE_BYTES - 1)


def directory(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize("unusable", [missing, empty, short, directory])
def test_an_unusable_file_is_told_with_rule_and_remedy(
    tmp_path: Path, unusable: Callable[[Path], Path]
) -> None:
    path = unusable(tmp_path)
    said = rf"^{re.escape(str(path))} .*at least {SMALLEST_FILE_BYTES} bytes; .*--text"
    with pytest.raises(ValueError, match=said):
        load_corpus([write(tmp_path / "good.txt", SMALLEST_FILE_BYTES), path])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_without_permission_is_told_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "locked.txt", SMALLEST_FILE_BYTES)
    path.chmod(0)
    with pytest.raises(ValueError, match=r"locked\.txt.*--text"):
        load_corpus([path])


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", SMALLEST_FILE_BYTES)
    with pytest.raises(ValueError, match="no file twice"):
        load_corpus([path, path])
