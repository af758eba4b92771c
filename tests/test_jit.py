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
