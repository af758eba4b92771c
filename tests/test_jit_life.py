"""What becomes of compiled kernels: kept where they can be, told of, and made once for all constants."""

import ctypes
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import isotherm

INNER = """
from isotherm.jit import kernel

@kernel
def inner(x, more, flag):
    return x + more if flag else x

@kernel
def outer(x):
    return inner(x, 1, True) + inner(x, 2, False) + inner(x, x, x > 0)
"""
PROGRAM = """
import logging, sys
from numba.core import event
compiled = []

class Listener(event.Listener):
    def on_start(self, what):
        compiled.append(what.data["dispatcher"].py_func.__name__)

    def on_end(self, what):
        pass

event.register("numba:compile", Listener())
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
from isotherm.inner import inner, outer
print(outer(3), bool(outer.stats.cache_hits), compiled.count("inner"), inner(2, 3, True))
"""
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of linux/prctl.h and linux/capability.h
TOLD = "compiling kernels, once for this version on this machine"

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and sys.platform != "linux",
    reason="root can write anywhere, and cannot give that up here",
)


@pytest.fixture
def installation():
    """A folder that holds a package with one real source, which everybody may read and nobody write to."""
    folder = Path(tempfile.mkdtemp())
    package = folder / "isotherm"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(INNER)
    shutil.copy(Path(isotherm.__file__).with_name("jit.py"), package)
    for path in (*package.iterdir(), package, folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, package):
        path.chmod(0o755)
    shutil.rmtree(folder)


def obey_permissions():
    """Root may write anywhere; a process of root's without this capability only where it says so."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def run(installation, home, **more):
    """The program, in a process that may write to ``home`` alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        text=True,
        timeout=60,
        env={**kept, "PYTHONPATH": str(installation), "HOME": str(home)},
        preexec_fn=obey_permissions,
        **more,
    )


@pytest.fixture
def home():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_installation_keeps_kernels_in_the_users_folder(installation, home):
    first, second = (run(installation, home, capture_output=True) for _ in range(2))
    assert first.stdout.splitlines()[-1] == "13 False 1 5", first.stderr
    assert (first.stdout.count(TOLD), first.stderr) == (1, "")
    assert second.stdout == "13 True 0 5\n"
    assert list(home.rglob("*.nbc"))
    assert not list(installation.rglob("*.nb*"))


def test_without_any_folder_kernels_still_run_and_the_remedy_is_told(installation):
    done = run(installation, "/dev/null", capture_output=True)
    assert done.stdout.splitlines()[-1] == "13 False 1 5", done.stderr
    assert "WARNING isotherm kernels are compiled anew in each process" in done.stdout
    assert "set NUMBA_CACHE_DIR" in done.stdout


def test_compiling_is_told_on_a_terminal(installation, home):
    here, there = pty.openpty()
    run(installation, home, stdout=subprocess.DEVNULL, stderr=there)
    os.close(there)
    assert os.read(here, 4096).decode().count(f"isotherm: {TOLD}") == 1
    os.close(here)
