"""The command line: `workbench run | list | show | replay | capsule | compare | verify | doctor | app | lab`.

A command is one entry of `COMMANDS`: what it adds to its parser, and what it does, in a module of its own kind. Options
of sampling come from the declaration of `Sampling`, parameters of decoders are given as `--set name=value`. Only the
chosen command's parser is built, so that help, `show` and `replay` need no torch. Errors are one line on stderr and
exit code 2; Ctrl-C is 130. A fault in the code, ours or a plug-in's, is one line too, and its place; with
WORKBENCH_TRACEBACK in the environment it is raised.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench import __version__
from workbench.cli.compare import add_compare, compare_arms
from workbench.cli.faces import add_app, add_lab, app, lab
from workbench.cli.installed import add_doctor, add_list, doctor, list_members
from workbench.cli.options import Parser
from workbench.cli.recorded import add_capsule, add_replay, add_show, capsule, replay_run, show
from workbench.cli.run import add_run, run
from workbench.cli.verify import add_verify, verify
from workbench.errors import WorkbenchError, shown

__all__ = ["main"]

VARIABLE = "WORKBENCH_TRACEBACK"


@dataclass(frozen=True)
class Command:
    """A command: a line of help, what it adds to its parser, and what it does (returns the exit code)."""

    help: str
    add: Callable[[Parser], None]
    execute: Callable[[argparse.Namespace], int]


COMMANDS = {
    "run": Command("decode a prompt", add_run, run),
    "list": Command(
        "decoders, drafters, shapes, verifiers, policies, quantizers, models, refusals", add_list, list_members
    ),
    "show": Command("the figures and tables of a trace", add_show, show),
    "replay": Command("watch a recorded run again, without the model", add_replay, replay_run),
    "capsule": Command("a recorded run as one offline HTML file", add_capsule, capsule),
    "compare": Command("decoders side by side on the same prompts", add_compare, compare_arms),
    "verify": Command("is a decoder lossless? what it claims against what it does", add_verify, verify),
    "doctor": Command("what is installed, what runs where, and self-tests of the kernels", add_doctor, doctor),
    "app": Command("open the app", add_app, app),
    "lab": Command("open the tutorial notebooks in JupyterLab", add_lab, lab),
}


def parser_for(chosen: str | None) -> Parser:
    """The parser, with the options of the chosen command only."""
    parser = Parser(prog="workbench", description="Adaptive decoding of language models, token by token.")
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            command.add(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for out in (sys.stdout, sys.stderr):
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = parser_for(chosen).parse_args(argv)
        return COMMANDS[args.command].execute(args)
    except WorkbenchError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away; keep Python from saying so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return fail("out of memory; use a smaller model or fewer tokens (a trace under --out is kept)")
        if os.environ.get(VARIABLE):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return fail(f"{shown(error.filename)}: {error.strerror}")
        return fail(fault(error))


def fault(error: Exception) -> str:
    """A line for an exception that nobody raised on purpose: what, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename}:{frame.lineno}"
    return f"fault in {place}: {type(error).__name__}: {error} (please report it; {VARIABLE}=1 shows all of it)"


def fail(message: str) -> int:
    from workbench.terminal import escaped

    print(f"workbench: {' '.join(escaped(message).split())}", file=sys.stderr)
    return 2
