"""What numba keeps on disk is dropped exactly when a source that it was made from is newer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import isotherm

INNER = "from isotherm.jit import kernel\n\n@kernel\ndef inner(x):\n    return x + {}\n"
OUTER = (
    "from isotherm.jit import kernel\nfrom isotherm.inner import inner\n\n"
    "@kernel\ndef outer(x):\n    return 2 * inner(x)\n"
)
PROGRAM = "from isotherm.outer import outer\nprint(outer(1), bool(outer.stats.cache_hits))\n"


def test_a_kernel_is_compiled_anew_when_what_it_calls_has_changed(tmp_path):
    package = tmp_path / "isotherm"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(Path(isotherm.__file__).with_name("jit.py"), package)
    (package / "outer.py").write_text(OUTER)

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    (package / "inner.py").write_text(INNER.format(1))
    assert run() == "4 False"
    assert run() == "4 True"
    (package / "unrelated.py").touch()
    assert run() == "4 True"
    (package / "inner.py").write_text(INNER.format(10))
    assert run() == "22 False"


MEMORY = """
import numpy as np
from numba.core.runtime import _nrt_python, rtsys
from typing import NamedTuple
from isotherm.jit import kernel

class Pair(NamedTuple):
    one: np.ndarray
    two: np.ndarray

@kernel
def add(pair, to):
    for i in range(len(to)):
        if pair.one[i] < 0:
            return 0
        to[i] += pair.one[i:].sum()
    return len(to)

@kernel
def doubled(pair):
    return Pair(pair.one + pair.one, pair.two.copy())

@kernel
def chosen(pair, first):
    return pair.one if first else pair.two

@kernel
def picked(pair, places):
    return pair.one[places].sum()

@kernel
def whole(n):
    pair, total = Pair(np.arange(n), np.zeros(n, np.int64)), 0
    for i in range(n):
        add(pair, pair.two)
        pair = doubled(pair)
        total += chosen(pair, i % 2 == 0)[0] + picked(pair, pair.one[:2] % n) + chosen(pair, True)[1]
    return total

_nrt_python.memsys_enable_stats()
expected = whole(5)
before = rtsys.get_allocation_stats()
for _ in range(50):
    kept = [np.full(5, 77) for _ in range(20)]  # takes the place of what was let go too early
    assert whole(5) == expected == whole.py_func(5)
    assert all((each == 77).all() for each in kept)
after = rtsys.get_allocation_stats()
made, freed = after.mi_alloc - before.mi_alloc, after.mi_free - before.mi_free
print(made > 500, made - freed)
"""


def test_arrays_live_as_long_as_their_users_and_no_longer(tmp_path):
    (tmp_path / "whole.py").write_text(MEMORY)  # numba looks for the source
    done = subprocess.run(
        [sys.executable, tmp_path / "whole.py"], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert done.stdout == "True 0\n", done.stderr
