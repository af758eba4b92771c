"""What a call or a ``with`` statement is given, read from the frame that is about to make it.

A profiler is told which C function is called, and not with which arguments. They are found by the position
of the instruction: the source there is parsed, and arguments that are names, attributes or constants are
looked up in the frame. Whatever else they are, they stay unknown.
"""

from __future__ import annotations

import ast
import dis
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import islice
from types import CodeType, FrameType
from typing import Final

UNKNOWN: Final = object()
"""An argument that is there and cannot be told."""


def argument(frame: FrameType, position: int, name: str, default: object) -> object:
    """The argument of the C call that ``frame`` is making; ``default`` where it is left out, UNKNOWN
    where it cannot be told."""
    call = _call_at(frame)
    if call is None:
        return UNKNOWN
    if position < len(call.args):
        return _value(call.args[position], frame)
    for keyword in call.keywords:
        if keyword.arg in (name, None):
            return _value(keyword.value, frame) if keyword.arg else UNKNOWN
    return default


def entered(frame: FrameType) -> object:
    """What the ``with`` statement at the instruction of ``frame`` enters; None where it is at no such
    statement, or that is more than a name with attributes."""
    names = _entered_names(frame.f_code).get(frame.f_lasti)
    if names is None:
        return None
    value = reduce(lambda owner, name: getattr(owner, name, None), names.attributes, _name(frame, names.base))
    return None if value is UNKNOWN else value


def enters_names(code: CodeType) -> bool:
    """Whether ``code`` has ``with`` statements that ``entered`` can read."""
    return bool(_entered_names(code))


@dataclass(frozen=True)
class _Names:
    base: str
    attributes: tuple[str, ...]


@cache
def _entered_names(code: CodeType) -> dict[int, _Names]:
    """By offset of the instruction that enters. Up to Python 3.13 there is one for that alone."""
    instructions = list(dis.get_instructions(code))
    found = {}
    for index, instruction in enumerate(instructions):
        if instruction.opname == "BEFORE_WITH":
            names = _names_before(reversed(instructions[:index]))
            if names is not None:
                found[instruction.offset] = names
    return found


def _names_before(backwards: Iterator[dis.Instruction]) -> _Names | None:
    attributes: list[str] = []
    for instruction in backwards:
        if instruction.opname == "LOAD_ATTR":
            attributes.insert(0, instruction.argval)
            continue
        if not instruction.opname.startswith(("LOAD_FAST", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")):
            return None
        loaded = instruction.argval  # two names where one instruction loads two
        return _Names(loaded if isinstance(loaded, str) else loaded[-1], tuple(attributes))
    return None


def _call_at(frame: FrameType) -> ast.Call | None:
    code, index = frame.f_code, frame.f_lasti // 2
    _, end_line, _, end_column = next(islice(code.co_positions(), index, None))
    return _calls(code.co_filename).get((end_line, end_column))


@cache
def _calls(filename: str) -> dict[tuple[int | None, int | None], ast.Call]:
    """Calls of a file by where they end: each ends with a parenthesis of its own."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return {}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {(node.end_lineno, node.end_col_offset): node for node in nodes}


def _value(node: ast.expr, frame: FrameType) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _name(frame, node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, frame)
        return UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr, UNKNOWN)
    return UNKNOWN


def _name(frame: FrameType, name: str) -> object:
    for names in (frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return UNKNOWN
