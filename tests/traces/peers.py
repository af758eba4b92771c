"""Single files of packages that are installed without what they need, loaded beside stand-ins for that."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
    """A module of that name which holds these values and nothing else; so do the packages it is in, where
    nothing of that name is loaded."""
    for end in range(1, name.count(".") + 1):
        package = ".".join(name.split(".")[:end])
        if package not in sys.modules:
            stand_in(monkeypatch, package, __path__=[])
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)


def load(monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> ModuleType:
    """One file of an installed package, by its own name; skips where the package is not installed."""
    try:
        path = Path(str(distribution(package).locate_file(f"{name.replace('.', '/')}.py")))
    except PackageNotFoundError:
        pytest.skip(f"the {package} package is not installed: make test-readers installs it")
    stand_in(monkeypatch, name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
