"""What the documents name is there: files, tests, names, commands; and their first examples run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import isotherm
from isotherm.cli.config_file import FLAG, flag_aliases
from isotherm.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*.md"))]
TESTS = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests_engines/*.py")]
FILE = re.compile(r"\b((?:tests|tests_engines|examples|benchmarks|docs)/[\w/.-]*\w\.(?:py|png|md))\b")
MODULE = re.compile(r"`([\w/]+\.py)`")
NAMED_TEST = re.compile(r"\b(?:((?:tests|tests_engines)/[\w/]+\.py)::)?(test_\w+)\b(?!\.py)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOTTED = re.compile(r"`(isotherm(?:\.\w+)+)[`(]")
MAKE = re.compile(r"(?:`|^ {4})make ([\w-]+)", re.MULTILINE)
COMMAND = re.compile(r"(?:`|^(?: {4})?)isotherm ((?:[^`\n\\#]|\\\n)+)", re.MULTILINE)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


@each_page
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = text_of(page)
    missing = [name for name in FILE.findall(text) if not (ROOT / name).is_file()]
    sources = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("src/**/*.py"), *TESTS]}
    sources |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py")}
    missing += [
        name for name in MODULE.findall(text) if not any(f"/{path}".endswith(f"/{name}") for path in sources)
    ]
    tests = {path: text_of(path) for path in TESTS}
    for file, name in NAMED_TEST.findall(text):
        where = [tests.get(ROOT / file, "")] if file else tests.values()
        if not any(f"def {name}(" in source for source in where):
            missing.append(f"{file}::{name}")
    assert not missing, f"{page.name} names what is not there: {missing}"


def test_the_patterns_find_what_is_named() -> None:
    text = text_of(ROOT / "docs" / "prior-art.md")
    assert len(NAMED_TEST.findall(text)) > 10
    assert "tests/heat/test_collector.py" in FILE.findall(text)
    assert "tests_engines/test_vllm_policy.py" in FILE.findall(text_of(ROOT / "docs" / "engines.md"))
    assert NAMED_TEST.findall("tests_engines/a.py::test_b") == [("tests_engines/a.py", "test_b")]
    assert "control/relink.py" in MODULE.findall(text_of(ROOT / "ARCHITECTURE.md"))
    readme = text_of(ROOT / "README.md")
    assert {"demo", "test", "bench"} <= set(MAKE.findall(readme))
    assert any(line.startswith("plan ") and "--format sglang" in line for line in COMMAND.findall(readme))


def names_used(code: str) -> Iterator[tuple[str, str]]:
    """(module, name) of what a block takes from this project."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isotherm"):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "iso":
            yield "isotherm", node.attr


def source_of(module: str) -> str:
    path = ROOT / "src" / module.replace(".", "/")
    return text_of(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


@each_page
def test_names_that_a_page_takes_from_here_are_there(page: Path) -> None:
    """Read, not imported: that would take transformers, or an engine."""
    for block in PYTHON.findall(text_of(page)):
        for module, name in names_used(block):
            found = (
                name in isotherm.__all__
                if module == "isotherm"
                else re.search(rf"\b{name}\b", source_of(module)) is not None
            )
            assert found, f"{page.name}: {module} has no {name}"


def is_there(dotted: str, sources: str) -> bool:
    """Whether it is a module, what a module has by that name, or a group of entry points."""
    module, _, name = dotted.rpartition(".")
    path = ROOT / "src" / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file() or f'"{dotted}"' in sources:
        return True
    parent = ROOT / "src" / module.replace(".", "/")
    if not (parent.is_dir() or parent.with_suffix(".py").is_file()):
        return is_there(module, sources)
    return re.search(rf"\b{name}\b", source_of(module)) is not None


@each_page
def test_dotted_names_on_a_page_are_there(page: Path) -> None:
    sources = "".join(text_of(path) for path in ROOT.glob("src/isotherm/**/*.py"))
    missing = [name for name in DOTTED.findall(text_of(page)) if not is_there(name, sources)]
    assert not missing, f"{page.name} names what is not there: {missing}"


def test_dotted_names_that_are_not_there_are_found() -> None:
    assert is_there("isotherm.control.next_life", "")
    assert not is_there("isotherm.policies", "")
    assert not is_there("isotherm.control.gone", "")
    assert not is_there("isotherm.gone.next_life", "")
    assert "isotherm.decide.make_decision" in DOTTED.findall(text_of(ROOT / "docs" / "planning.md"))


@each_page
def test_commands_that_a_page_shows_have_these_options(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert not set(MAKE.findall(text_of(page))) - set(targets)
    options = {command.name: command.options for command in COMMANDS}
    for line in COMMAND.findall(text_of(page)):
        name, *rest = line.split(" -- ")[0].split()
        flags = {word.split("=")[0] for word in rest if re.match(r"--\w", word)}
        assert name in options, f"{page.name}: isotherm {line}"
        unknown = flags - flag_aliases(options[name]).keys() - {FLAG, "--help"}
        assert not unknown, f"{page.name}: isotherm {line}: no option {', '.join(unknown)}"


@pytest.mark.parametrize("page", ["README.md", "docs/planning.md"])
def test_the_first_example_of_a_page_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    block = PYTHON.findall(text_of(ROOT / page))[0]
    assert "import isotherm" in block
    exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out or "print" not in block
