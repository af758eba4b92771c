"""The one way to compile: numba, cached on disk, without the GIL, in one thread.

No ``parallel=True`` (it aborts the process when two threads enter it, or when the host forks after it)
and no ``fastmath``: every sum is made in the order written, so every machine finds the same answer.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """``function``, compiled at its first call with each set of argument types."""
    compiled = numba.njit(cache=True, nogil=True)(function)
    if hasattr(compiled, "stats"):  # not so under NUMBA_DISABLE_JIT
        _drop_stale(Path(function.__code__.co_filename).parent, compiled.stats.cache_path)
    return cast(_Function, compiled)


@cache
def _drop_stale(folder: Path, cache_path: str) -> None:
    """Forgets what was compiled before the newest source in ``folder``. numba itself looks only at the
    file of the function that is called, and would go on with an old version of those it calls."""
    sources = list(folder.glob("*.py"))
    newest = max((source.stat().st_mtime for source in sources), default=0.0)
    for index in Path(cache_path).glob("*.nbi"):
        try:
            if index.name.split(".")[0] in {s.stem for s in sources} and index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was quicker, or the folder is read-only
            continue
