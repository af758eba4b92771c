"""Real text that is on every machine: Python's own documentation and source, or named files.

Routing depends on what is read, so the demo needs at least two kinds of text that a router tells
apart. Every Python carries them: documentation is prose, source without its documentation is
code. Nothing is downloaded, and every process that loads the corpus gets the same bytes.
"""

from __future__ import annotations

import ast
import importlib
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isotherm.arrays import Int64Array

SMALLEST_TEXT_BYTES = 2048
SMALLEST_FILE_BYTES = 2 * SMALLEST_TEXT_BYTES  # a file alone is split in two halves
LARGEST_FILE_BYTES = 16 * 2**20
STDLIB_CODE_BYTES = 800_000
STDLIB_PROSE_BYTES = 2_000_000

_NOT_TEXT = frozenset({"site-packages", "dist-packages", "test", "tests", "pydoc_data"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_REMEDY = "give a larger text file with --text, or leave --text out"


@dataclass(frozen=True)
class Corpus:
    """Texts by kind, from which any rank draws any step's batch without talking to the others.

    ``kinds[i]`` names ``texts[i]``.

    Raises:
        ValueError: no kind, a kind named twice or without its text, or a text of less than
            ``SMALLEST_TEXT_BYTES`` bytes.
    """

    kinds: tuple[str, ...]
    texts: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not self.kinds or len(self.kinds) != len(self.texts):
            raise ValueError(
                f"kinds {self.kinds} must name the {len(self.texts)} texts, one each, at least one"
            )
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"kinds {self.kinds} must be distinct")
        for kind, text in zip(self.kinds, self.texts, strict=True):
            if len(text) < SMALLEST_TEXT_BYTES:
                raise ValueError(f"text {kind!r} has {len(text)} bytes: give at least {SMALLEST_TEXT_BYTES}")

    def batch(self, kind: int, step: int, rank: int, *, seed: int, sequences: int, length: int) -> Int64Array:
        """Byte ids int64 [sequences, length] in 0 to 255, each row one stretch of the kind's text.

        A function of its arguments alone: another kind, step, rank or seed draws other stretches.

        Raises:
            ValueError: no such kind, a negative number, no sequences, or a ``length`` that is not
                in 1 to the length of the kind's text.
        """
        self._check_draw(kind, step, rank, seed, sequences, length)
        text = np.frombuffer(self.texts[kind], dtype=np.uint8)
        generator = np.random.Generator(np.random.PCG64([seed, kind, step, rank]))
        starts = generator.integers(0, len(text) - length + 1, size=sequences)
        batch: Int64Array = text[starts[:, None] + np.arange(length)].astype(np.int64)
        return batch

    def _check_draw(self, kind: int, step: int, rank: int, seed: int, sequences: int, length: int) -> None:
        if not 0 <= kind < len(self.kinds):
            raise ValueError(f"kind={kind} is no kind: give 0 to {len(self.kinds) - 1}")
        for name, value in (("step", step), ("rank", rank), ("seed", seed)):
            if value < 0:
                raise ValueError(f"{name}={value} is negative: give 0 or more")
        if sequences < 1:
            raise ValueError(f"sequences={sequences} is below 1: give a positive number")
        if not 1 <= length <= len(self.texts[kind]):
            raise ValueError(
                f"length={length} does not fit text {self.kinds[kind]!r}: "
                f"give 1 to {len(self.texts[kind])} bytes"
            )


def load_corpus(paths: Sequence[Path] | None = None) -> Corpus:
    """The corpus of the files at ``paths``, or without any, Python's ``"prose"`` and ``"code"``.

    Each file is one kind, called by its file name (by its path where two names are the same). One
    file alone gives two kinds, its two halves. Of a file over ``LARGEST_FILE_BYTES`` the beginning
    of that size is read.

    Raises:
        ValueError: a file that is missing, unreadable, no regular file, or of less than
            ``SMALLEST_FILE_BYTES`` bytes, or one given twice; the message names path, rule and
            remedy.
    """
    if not paths:
        return _stdlib_corpus()
    texts = tuple(_read_file(path) for path in paths)
    if len(paths) == 1:
        name, half = paths[0].name, len(texts[0]) // 2
        kinds = (f"{name} (first half)", f"{name} (second half)")
        return Corpus(kinds, (texts[0][:half], texts[0][half:]))
    return Corpus(_kinds(paths), texts)


def _kinds(paths: Sequence[Path]) -> tuple[str, ...]:
    for names in (tuple(path.name for path in paths), tuple(str(path) for path in paths)):
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"--text {' '.join(names)}: each file is one kind; give no file twice")


def _read_file(path: Path) -> bytes:
    rule = f"a text must be a file of at least {SMALLEST_FILE_BYTES} bytes"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: opening a pipe would wait
            raise ValueError(f"{path} is no file: {rule}; {_REMEDY}")
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {rule}; {_REMEDY}") from error
    if len(text) < SMALLEST_FILE_BYTES:
        raise ValueError(f"{path} has {len(text)} bytes: {rule}; {_REMEDY}")
    return text


def _stdlib_corpus() -> Corpus:
    """Prose is the language reference and the docstrings, code is the source without them."""
    prose, code = [_language_reference()], [b""]
    code_bytes = 0
    for path in _stdlib_sources():
        docstrings, source = _split_source(path.read_bytes())
        prose.append(docstrings)
        code.append(source)
        code_bytes += len(source)
        if code_bytes >= STDLIB_CODE_BYTES:
            break
    texts = (b"".join(prose)[:STDLIB_PROSE_BYTES], b"".join(code)[:STDLIB_CODE_BYTES])
    if min(len(text) for text in texts) < SMALLEST_FILE_BYTES:
        raise ValueError(
            f"{_stdlib()} holds no source of Python's standard library to read as text; "
            "give two text files with --text"
        )
    return Corpus(("prose", "code"), texts)


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _stdlib_sources() -> Iterator[Path]:
    """Public modules first, then the packages', in order of name, so that all processes agree."""
    yield from _public_modules(_stdlib())
    for package in sorted(_stdlib().glob("*/__init__.py")):
        if package.parent.name not in _NOT_TEXT:
            yield from _public_modules(package.parent)


def _public_modules(folder: Path) -> Iterator[Path]:
    # Private modules hold tables and one machine's build settings, which are neither kind.
    return (path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_"))


def _language_reference() -> bytes:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions package it apart; the docstrings remain
        return b""
    return b"".join(_paragraphs(topics[name]) for name in sorted(topics))


def _paragraphs(text: str) -> bytes:
    """What of a documentation text is prose: its paragraphs of sentences, a line each."""
    # Grammars, signatures and sample code end without a stop. They read like the other kind.
    lines = (" ".join(block.split()) for block in text.split("\n\n"))
    prose = "".join(f"{line}\n" for line in lines if line.endswith((".", ":")))
    return prose.encode(errors="replace")


def _split_source(source: bytes) -> tuple[bytes, bytes]:
    """The docstrings of one module, and its source less docstrings, comments and empty lines."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # some modules are made broken, to be tested with
        return b"", b""
    lines: list[bytes] = source.splitlines()
    docstrings = []
    for expression, value in _docstrings(tree):
        docstrings.append(_paragraphs(value))
        for number in range(expression.lineno, (expression.end_lineno or expression.lineno) + 1):
            lines[number - 1] = b""
    code = [line.rstrip() for line in lines if not line.lstrip().startswith(b"#")]
    return b"".join(docstrings), b"\n".join(line for line in code if line) + b"\n"


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, str]]:
    """Each docstring of the module and its definitions, however deep, and its text less the indentation."""
    documented = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        text = ast.get_docstring(node)
        if text:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            yield first, text
