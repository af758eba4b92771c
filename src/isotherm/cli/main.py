"""The `isotherm` command: results on stdout, talk on stderr.

Exit codes: 0, the work was done; 1, a check said no; 2, wrong use or input; 70, a fault of ours; 130,
interrupted.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import tyro

from isotherm.bench.options import BenchOptions
from isotherm.cli.convert_file import ConvertOptions, run_convert
from isotherm.cli.inspect_file import InspectOptions, run_inspect
from isotherm.cli.plan_file import PlanOptions, run_plan
from isotherm.demo.options import DemoOptions
from isotherm.errors import IsothermError

WRONG_USE = 2
FAULT = 70
INTERRUPTED = 130


@dataclass(frozen=True)
class DoctorOptions:
    """Prints versions, devices and what is missing, for a bug report.

    Examples:
        isotherm doctor
        isotherm doctor --streams
    """

    streams: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run the contract of streams and events on every device here."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as JSON on stdout."""


def _subcommand(name: str, options: type) -> Any:
    # Given in full: of a docstring, tyro by itself leaves the examples out.
    return tyro.conf.subcommand(name, description=inspect.getdoc(options), prefix_name=False)


_Command = (
    Annotated[DemoOptions, _subcommand("demo", DemoOptions)]
    | Annotated[InspectOptions, _subcommand("inspect", InspectOptions)]
    | Annotated[PlanOptions, _subcommand("plan", PlanOptions)]
    | Annotated[ConvertOptions, _subcommand("convert", ConvertOptions)]
    | Annotated[BenchOptions, _subcommand("bench", BenchOptions)]
    | Annotated[DoctorOptions, _subcommand("doctor", DoctorOptions)]
)
_Options: TypeAlias = (
    DemoOptions | InspectOptions | PlanOptions | ConvertOptions | BenchOptions | DoctorOptions
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code. Wrong input ends in one message, never in a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parse(arguments)
        return _run(options, arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else WRONG_USE
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, IsothermError) as error:
        _tell(f"isotherm: {error}")
        return WRONG_USE
    except Exception:
        return _tell_fault()


def _parse(arguments: Sequence[str]) -> _Options:
    options: _Options = tyro.cli(
        _Command,
        prog="isotherm",
        description="Keeps the ranks of an expert-parallel MoE engine at the same temperature.",
        args=list(arguments),
    )
    return options


def _run(options: _Options, arguments: Sequence[str]) -> int:
    if isinstance(options, DoctorOptions):
        return _doctor(options)
    if isinstance(options, InspectOptions):
        return run_inspect(options)
    if isinstance(options, PlanOptions):
        return run_plan(options)
    if isinstance(options, ConvertOptions):
        return run_convert(options)
    if isinstance(options, BenchOptions):
        from isotherm.cli.bench import run_bench

        return run_bench(options)
    return _demo(options, arguments[1:])


def _demo(options: DemoOptions, arguments: Sequence[str]) -> int:
    from isotherm.demo import launch

    if not launch.launched_by_torch():
        return launch.launch_ranks(options, arguments)
    return _as_rank(options)


def _as_rank(options: DemoOptions) -> int:
    from isotherm.demo import launch

    try:
        launch.check_extras()
        from isotherm.demo.worker import run_rank

        return run_rank(options)
    except (ValueError, IsothermError) as error:
        if launch.LAUNCHED in os.environ:
            launch.tell_launcher(str(error))
        else:
            _tell(f"isotherm: {error}")
        code = WRONG_USE
    except Exception:
        code = _tell_fault()
    # Our threads may be inside a collective, and the end of the interpreter would abort them and the rank.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _doctor(options: DoctorOptions) -> int:
    import json

    from rich.console import Console

    from isotherm.cli.doctor import collect_doctor_report, render_doctor

    report = collect_doctor_report(streams=options.streams)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        render_doctor(report, Console())
    return 0 if report.ok else 1


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


def _tell_fault() -> int:
    traceback.print_exc()
    _tell("isotherm: this is a fault of ours; please report it with the lines above")
    return FAULT
