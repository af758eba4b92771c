"""Options from a YAML file: the names of the flags, behind what the command line says itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
import yaml  # type: ignore[import-untyped]

from isotherm.traces.problems import problem, read_whole, shortened

FLAG = "--config"
TOLD = (
    f"{FLAG} FILE reads options from a YAML file, by the names of the flags without their dashes; what the "
    "command line says itself goes before."
)
"""What the help of a command says of it."""

_LARGEST_YAML = 2**20


def with_config(arguments: Sequence[str], options: type) -> list[str]:
    """The arguments of a command with those of its ``--config FILE`` behind them, save those that are given
    already. ``options``: the class that the command line of the command is made from.

    Raises:
        ValueError: the file cannot be read, or holds anything but names of flags and their values; the
            message names the nearest flag.
    """
    rest, path = _split(arguments)
    if path is None:
        return rest
    aliases = flag_aliases(options)
    given = {aliases.get(_flag_of(argument), "") for argument in rest if argument.startswith("--")}
    added: list[str] = []
    named: dict[str, str] = {}
    for key, value in _parse(path).items():
        flag = f"--{str(key).replace('_', '-')}"
        if flag not in aliases:
            raise problem(path, shortened(key), f"is no option of this command{_nearest(flag, aliases)}")
        if aliases[flag] in named:
            raise problem(
                path, shortened(key), f"is {named[aliases[flag]]} by another name: give one of them"
            )
        named[aliases[flag]] = key
        if aliases[flag] not in given:
            added += _as_arguments(flag, value, path)
    return rest + added


def _split(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without ``--config FILE``, and the file."""
    rest: list[str] = []
    path: Path | None = None
    left = iter(arguments)
    for argument in left:
        if argument != FLAG and not argument.startswith(f"{FLAG}="):
            rest.append(argument)
            continue
        name = argument.removeprefix(f"{FLAG}=") if "=" in argument else next(left, "")
        if not name or path is not None:
            raise ValueError(f"{FLAG} wants one file, once")
        path = Path(name)
    return rest, path


def flag_aliases(options: type) -> dict[str, str]:
    """Every flag of the command, and the one that its field is named by. A field that is a dataclass gives
    its own fields, as tyro does where it is given no name; positional arguments have no flag."""
    flags: dict[str, str] = {}
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        plain, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(plain) and isinstance(plain, type):
            flags |= flag_aliases(plain)
        elif tyro.conf.Positional not in marks and tyro.conf.Suppress not in marks:
            named = f"--{field.name.replace('_', '-')}"
            also = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
            flags |= dict.fromkeys((named, *also), named)
    return flags


def _flag_of(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _nearest(flag: str, aliases: dict[str, str]) -> str:
    near = get_close_matches(flag, aliases, n=1, cutoff=0.5)
    return f": do you mean {near[0].removeprefix('--')}?" if near else ""


def _parse(path: Path) -> dict[Any, Any]:
    data = read_whole(path)
    if len(data) > _LARGEST_YAML:
        raise problem(path, "", f"{len(data)} bytes are more than options take")
    try:
        values = yaml.load(data, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise problem(path, "", f"not YAML: {shortened(' '.join(str(error).split()))}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise problem(path, "", "must hold names of options and their values")
    return values


def _as_arguments(flag: str, value: Any, path: Path) -> list[str]:
    """What one would type for it. ``false`` and ``null`` are an option that is left out."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        raise problem(path, flag.removeprefix("--"), f"{shortened(value)} is no value of an option")
    return [flag, *map(str, values)]
