"""The `isotherm` command: results on stdout, talk on stderr.

Exit codes: 0, the work was done; 1, a check said no; 2, wrong use or input; 70, a fault of ours; 130,
interrupted.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from isotherm.bench.options import BenchOptions
from isotherm.cli.compare import CompareOptions, run_compare
from isotherm.cli.config_file import TOLD, with_config
from isotherm.cli.convert_file import ConvertOptions, run_convert
from isotherm.cli.inspect_file import InspectOptions, run_inspect
from isotherm.cli.output import prepare_stdout, settle_stdout
from isotherm.cli.plan_file import PlanOptions, run_plan
from isotherm.cli.record_run import SEPARATOR, RecordOptions, run_record, split_command
from isotherm.cli.simulate import SimulateOptions, run_simulate
from isotherm.cli.synth_file import SynthOptions, run_synth
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


@dataclass(frozen=True)
class Command:
    """A subcommand: the class that its command line is made from, and what runs it. ``run`` is given the
    options and the arguments that they were made of, and returns the exit code."""

    name: str
    options: type
    run: Callable[[Any, Sequence[str]], int]

    def help(self, asked: bool) -> str:
        """All there is to say where its own help is ``asked`` for, else the first paragraph."""
        text = inspect.getdoc(self.options) or ""
        return f"{text}\n\n{TOLD}" if asked else text.partition("\n\n")[0]


def _alone(run: Callable[[Any], int]) -> Callable[[Any, Sequence[str]], int]:
    return lambda options, _: run(options)


def _demo(options: DemoOptions, arguments: Sequence[str]) -> int:
    from isotherm.demo import launch

    if not launch.launched_by_torch():
        return launch.launch_ranks(options, arguments)
    return _as_rank(options)


def _record(options: RecordOptions, arguments: Sequence[str]) -> int:
    return run_record(options, split_command(arguments)[1])


def _bench(options: BenchOptions) -> int:
    from isotherm.cli.bench import run_bench

    return run_bench(options)


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


COMMANDS = (
    Command("demo", DemoOptions, _demo),
    Command("inspect", InspectOptions, _alone(run_inspect)),
    Command("compare", CompareOptions, _alone(run_compare)),
    Command("plan", PlanOptions, _alone(run_plan)),
    Command("simulate", SimulateOptions, _alone(run_simulate)),
    Command("convert", ConvertOptions, _alone(run_convert)),
    Command("synth", SynthOptions, _alone(run_synth)),
    Command("record", RecordOptions, _record),
    Command("bench", BenchOptions, _alone(_bench)),
    Command("doctor", DoctorOptions, _alone(_doctor)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code. Wrong input ends in one message, never in a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    prepare_stdout()
    try:
        own, behind = split_command(arguments) if arguments[:1] == ["record"] else (arguments, [])
        own = _with_config(own)
        arguments = [*own, SEPARATOR, *behind] if behind else own
        options = _parse(own)
        command = next(each for each in COMMANDS if type(options) is each.options)
        code = command.run(options, arguments[1:])
        sys.stdout.flush()
        return code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else WRONG_USE
    except KeyboardInterrupt:
        return _tell_interrupted()
    except OSError as error:
        settle_stdout()
        _tell(f"isotherm: {error}")
        return WRONG_USE
    except MemoryError as error:
        _tell(f"isotherm: there is not enough memory for this{f': {error}' if str(error) else ''}")
        return WRONG_USE
    except (ValueError, IsothermError) as error:
        _tell(f"isotherm: {error}")
        return WRONG_USE
    except Exception as error:
        return _tell_interrupted() if _is_of_interruption(error) else _tell_fault()


def _parse(arguments: Sequence[str]) -> Any:
    subcommands: list[Any] = [
        Annotated[
            command.options,
            tyro.conf.subcommand(
                # Given in full: of a docstring, tyro by itself leaves the examples out.
                command.name,
                description=command.help(command.name in arguments[:1]),
                prefix_name=False,
            ),
        ]
        for command in COMMANDS
    ]
    union: Any = reduce(or_, subcommands)
    return tyro.cli(
        union,
        prog="isotherm",
        description="Keeps the ranks of an expert-parallel MoE engine at the same temperature.",
        args=list(arguments),
    )


def _with_config(arguments: Sequence[str]) -> list[str]:
    named = [command for command in COMMANDS if command.name in arguments[:1]]
    return [named[0].name, *with_config(arguments[1:], named[0].options)] if named else list(arguments)


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


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


def _is_of_interruption(error: BaseException | None) -> bool:
    """What interrupts an import of another package may come out as an error of that package."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _tell_interrupted() -> int:
    _tell("interrupted")
    return INTERRUPTED


def _tell_fault() -> int:
    traceback.print_exc()
    _tell("isotherm: this is a fault of ours; please report it with the lines above")
    return FAULT
