"""What the documents name is there: files, and tests by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/*.md")) + [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE")]
FILE = re.compile(r"\b((?:tests|examples|benchmarks|docs)/[\w/.-]*\w\.(?:py|png|md))\b")
NAMED_TEST = re.compile(r"\b(?:(tests/[\w/]+\.py)::)?(test_\w+)\b(?!\.py)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in FILE.findall(text) if not (ROOT / name).is_file()]
    tests = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    for file, name in NAMED_TEST.findall(text):
        if (ROOT / "tests" / f"{name}.py").is_file():
            continue
        where = [tests[ROOT / file]] if file else tests.values()
        if not any(f"def {name}(" in source for source in where):
            missing.append(f"{file}::{name}")
    assert not missing, f"{page.name} names what is not there: {missing}"


def test_the_pattern_finds_what_is_named() -> None:
    text = (ROOT / "docs" / "prior-art.md").read_text(encoding="utf-8")
    assert len(NAMED_TEST.findall(text)) > 10
    assert "tests/heat/test_collector.py" in FILE.findall(text)
