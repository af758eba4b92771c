"""The one way to compile: numba, cached on disk, without the GIL, in one thread.

No ``parallel=True`` (it aborts the process when two threads enter it, or when the host forks after it)
and no ``fastmath``: every sum is made in the order written, so every machine finds the same answer.

A kernel that is called thousands of times per second takes addresses, not arrays: to unpack one array
costs as much as ten integers. `entry` then leaves out numba's own choice of a version by the types of
the arguments.

What is compiled is kept in ``__pycache__`` beside the source, in the user's cache folder where that cannot be
written to, or where ``NUMBA_CACHE_DIR`` says.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import event
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.ir import Assign, Expr
from numba.extending import intrinsic, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_log = logging.getLogger(__package__)
_COUNTS = {"NRT_incref", "NRT_decref"}
_VIEWS = {"getattr", "getitem", "static_getitem", "build_tuple", "cast", "phi"}
"""Operations that look at an array and make none."""
_numbers = itertools.count()
_IMPORT = re.compile(rf"^(?:from|import) {__package__}\.([\w.]+)", re.MULTILINE)


def kernel(function: _Function) -> _Function:
    """``function``, compiled at its first call with each set of argument types: once where Python calls it,
    and once where kernels do, which take in what they call."""
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:  # no folder can be written to
        _tell_no_cache(str(error))
        compiled = numba.njit(nogil=True)(function)
    if not hasattr(compiled, "stats"):  # NUMBA_DISABLE_JIT
        return function
    if compiled.stats.cache_path is not None:
        _drop_stale(Path(function.__code__.co_filename), compiled.stats.cache_path)
    as_part: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _PartCompiler}
    _lend(compiled, numba.njit(nogil=True, **as_part)(function))
    return cast(_Function, compiled)


def _lend(dispatcher: Any, part: Any) -> None:
    """Lets kernels that call ``dispatcher`` take in ``part``, which Python cannot call; where they give a
    constant, what is compiled for any value. numba would compile it anew for each constant, which took a
    quarter of the time."""

    def get_call_template(args: Any, kws: Any) -> Any:
        return part.get_call_template([types.unliteral(each) for each in args], kws)  # type: ignore[no-untyped-call]

    dispatcher.get_call_template, dispatcher.get_overload = get_call_template, part.get_overload


class _Part(JITCodeLibrary):
    """A kernel as other kernels take it in: optimised and made machine code with each of those, and never by
    itself, nor kept on disk. numba would do both, for each kernel and all that it calls, which took half of
    the time."""

    state: Any = None

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """No Python function runs it, so none needs its globals."""

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    def add_ir_module(self, module: ir.Module) -> None:
        """Leaves out the counting of who uses an array where all arrays are the caller's, which keeps them
        until the call is over. Atomic counts took two thirds of the time of short kernels."""
        if _only_borrows(self.state) and _called(module) <= _COUNTS:
            for function in module.functions:
                for block in function.blocks:
                    block.instructions = [each for each in block.instructions if not _is_count(each)]
        super().add_ir_module(module)  # type: ignore[no-untyped-call]

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _PartCompiler(Compiler):
    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        part = _Part(target.codegen(), f"part {next(_numbers)}")  # type: ignore[no-untyped-call]
        super().__init__(typing, target, part, *rest)  # type: ignore[no-untyped-call]
        part.state = self.state


def _only_borrows(state: Any) -> bool:
    """Whether no array is made by what a kernel calls, and it returns none."""
    assigned = [each for block in state.func_ir.blocks.values() for each in block.find_insts(Assign)]
    made = [each.target for each in assigned if isinstance(each.value, Expr) and each.value.op not in _VIEWS]
    kinds = [state.return_type, *(state.typemap[each.name] for each in made)]
    models = state.targetctx.data_model_manager
    return not any(models[kind].contains_nrt_meminfo() for kind in kinds)


def _called(module: ir.Module) -> set[str]:
    """What the module calls of numba's run time: counting and allocation."""
    return {each.name for each in module.functions if each.name.startswith("NRT_")}


def _is_count(instruction: Any) -> bool:
    return isinstance(instruction, ir.CallInstr) and instruction.callee.name in _COUNTS


@cache
def _tell_no_cache(reason: str) -> None:
    _log.warning(
        "kernels are compiled anew in each process, up to half a minute: %s; set NUMBA_CACHE_DIR to a folder "
        "that can be written to",
        reason,
    )


class _Teller(event.Listener):
    """Says once that kernels are being compiled, on a terminal and in the log: people wait for it."""

    def on_start(self, event: Any) -> None:
        compiled_for = event.data["dispatcher"].py_func.__module__
        if compiled_for.partition(".")[0] == __package__:
            _tell_compiling()

    def on_end(self, event: Any) -> None:
        pass


@cache
def _tell_compiling() -> None:
    text = "compiling kernels, once for this version on this machine: up to half a minute"
    _log.info(text)
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"isotherm: {text}\n")


event.register("numba:compile", _Teller())  # type: ignore[no-untyped-call]


@cache
def entry(function: Callable[..., _Result], *kinds: types.Type) -> Callable[..., _Result]:
    """A kernel, compiled or loaded now, as the bare function that numba made of it. Its first arguments are
    taken as ``kinds``, the others as int64, without a look at their types."""
    if not hasattr(function, "compile"):  # NUMBA_DISABLE_JIT
        return function
    dispatcher = cast(Any, function)
    others = dispatcher.py_func.__code__.co_argcount - len(kinds)
    signature = (*kinds, *(types.int64,) * others)
    dispatcher.compile(signature)
    return cast(Callable[..., _Result], dispatcher.overloads[signature].entry_point)


def int32_at(address: int, length: int) -> np.ndarray:
    """The int32 array [length] at ``address``, in kernels. Whoever gives the address keeps it alive."""
    return np.ctypeslib.as_array((ctypes.c_int32 * length).from_address(address))


def int64_at(address: int, length: int) -> np.ndarray:
    """As `int32_at`, for int64."""
    return np.ctypeslib.as_array((ctypes.c_int64 * length).from_address(address))


def likely(condition: Any) -> Any:
    """``condition``, which is nearly always true: the compiler keeps what follows on the straight path."""
    return condition


def _pointer_to(kind: types.Type) -> Any:
    pointer_type = types.CPointer(kind)  # type: ignore[no-untyped-call]

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return pointer_type(types.int64), generate

    return pointer


_int32_pointer = _pointer_to(types.int32)
_int64_pointer = _pointer_to(types.int64)


@overload(int32_at, strict=False)
def _int32_at(address: Any, length: Any) -> Any:
    return lambda address, length: carray(_int32_pointer(address), (length,))


@overload(int64_at, strict=False)
def _int64_at(address: Any, length: Any) -> Any:
    return lambda address, length: carray(_int64_pointer(address), (length,))


@intrinsic
def _expect_true(context: Any, condition: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit = ir.IntType(1)
        function = builder.module.declare_intrinsic("llvm.expect", [bit], ir.FunctionType(bit, [bit, bit]))
        return builder.call(function, [args[0], bit(1)])

    return types.boolean(types.boolean), generate


@overload(likely, strict=False)
def _likely(condition: Any) -> Any:
    return lambda condition: _expect_true(condition)  # type: ignore[call-arg]


@cache
def _drop_stale(source: Path, cache_path: str) -> None:
    """Forgets what was compiled of ``source`` before the newest of the sources that it is made from. numba
    itself looks only at the file of the function that is called, and would go on with an old version of
    those it calls."""
    newest = max(each.stat().st_mtime for each in _sources_of(source))
    for index in Path(cache_path).glob(f"{source.stem}.*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was quicker, or the folder is read-only
            continue


def _sources_of(source: Path) -> set[Path]:
    """``source`` and what it imports of this package, directly or not."""
    package, found, todo = Path(__file__).parent, {Path(__file__)}, [source]
    while todo:
        each = todo.pop()
        if each in found:
            continue
        found.add(each)
        for module in _IMPORT.findall(each.read_text(encoding="utf-8")):
            path = package.joinpath(*module.split("."))
            todo += [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found
