"""Names that users meet: none means two things, and the offline ones need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import isotherm

PACKAGE = Path(isotherm.__file__).parent
# The console script's target. Nothing imports it by that name from isotherm.cli.
ENTRY_POINTS = {"cli/main.py:main"}


def modules() -> dict[str, Path]:
    """Every module and package below `isotherm`, by its own name."""
    found = {path.stem: path for path in sorted(PACKAGE.rglob("*.py"))}
    packages = {path.parent.name: path for path in sorted(PACKAGE.rglob("*/__init__.py"))}
    return {name: path for name, path in {**found, **packages}.items() if name[0] != "_"}


def public_functions() -> Iterator[tuple[str, str]]:
    """(file, function) of every public function at the top level of a module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and not node.name.startswith("_"):
                yield path.relative_to(PACKAGE).as_posix(), node.name


def test_no_public_function_shares_its_name_with_a_module() -> None:
    taken = modules()
    assert {"placement", "planner"} <= taken.keys()
    shared = [
        f"{file}: {name}() and {taken[name].relative_to(PACKAGE).as_posix()}"
        for file, name in public_functions()
        if name in taken and f"{file}:{name}" not in ENTRY_POINTS
    ]
    assert not shared, "rename one of each: " + "; ".join(shared)


@pytest.mark.parametrize("module", ["isotherm", "isotherm.planner", "isotherm.decide"])
def test_is_imported_without_torch(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported too: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
