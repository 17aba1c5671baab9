"""The commands, one entry each, and their parser."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from workbench import __version__
from workbench.cli.compare import add_compare, compare_arms
from workbench.cli.frontends import add_app, add_lab, app, lab
from workbench.cli.installed import add_doctor, add_list, doctor, list_members
from workbench.cli.options import Parser
from workbench.cli.recorded import add_capsule, add_replay, add_show, capsule, replay_run, show
from workbench.cli.run import add_run, run
from workbench.cli.verify import add_verify, verify

__all__ = ["COMMANDS", "parser_for"]


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
    "verify": Command("is a decoder lossless? what it guarantees against what it does", add_verify, verify),
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
