"""The commands, one entry each: what they add to their parser, and what they do. All but the longest are here."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench import __version__
from workbench.cli import lab
from workbench.cli.experiments import add_compare, add_verify, compare_arms, verify
from workbench.cli.options import Parser, print_json
from workbench.cli.preparing import preparing
from workbench.cli.run import add_run, run
from workbench.errors import BadInput

MEMBERS = "decoders, drafters, shapes, verifiers, policies, quantizers, readers, caches, views, recipes"
TABLES = ("tokens", "rounds", "drafts", "forwards", "cache", "bits", "events")


def add_show(parser: Parser) -> None:
    parser.add_argument("trace", help="a trace file such as run.wb")
    parser.add_argument("--table", choices=TABLES, help="print one table")
    parser.add_argument("--rows", type=int, default=40, metavar="N", help="rows of the table (default 40; 0 shows all)")
    parser.add_argument("--parquet", metavar="DIR", help="write every table as a Parquet file into a folder")
    parser.add_argument("--perfetto", metavar="FILE", help="write the timeline for ui.perfetto.dev, e.g. out.json")
    parser.add_argument("--json", action="store_true", help="print the run's settings and all figures as JSON")


def show(args: argparse.Namespace) -> int:
    """The main figures of a trace, its text, and a table."""
    from workbench.report.headline import headline
    from workbench.report.terminal import escaped, table
    from workbench.trace import Trace

    if args.rows < 0:
        raise BadInput(f"--rows: expected 0 or more, got {args.rows}")
    trace = Trace.load(args.trace)
    for line in trace.dropped:
        print(f"dropped from {args.trace}: {escaped(line)}", file=sys.stderr)
    if args.parquet:
        trace.to_parquet(args.parquet)
    if args.perfetto:
        trace.to_perfetto(args.perfetto)
    if args.json:
        print_json({"run": trace.run, "summary": trace.summary(), "dropped": trace.dropped})
    elif args.table:
        print(table(args.table, getattr(trace, args.table), args.rows))
    else:
        print("\n".join(f"{name:>23}  {escaped(value)}" for name, value in headline(trace).items()))
        print(f"\n{escaped(trace.text)}\n\n{table('rounds', trace.rounds, args.rows)}")
    return 0


def add_replay(parser: Parser) -> None:
    parser.add_argument("trace", help="a trace file such as run.wb")
    parser.add_argument("--by", choices=("round", "token"), default="round", help="a line each, or the text as it grew")
    parser.add_argument("--speed", type=float, metavar="X", help="times its own pace (inf: at once)")


def replay_run(args: argparse.Namespace) -> int:
    """A recorded run again, without the model."""
    from workbench.report.terminal import replay
    from workbench.trace import Trace

    speed = args.speed if args.speed is not None else 1.0 if sys.stdout.isatty() else float("inf")
    if not speed > 0:
        raise BadInput(f"--speed: expected a number above 0, got {speed:g}")
    replay(Trace.load(args.trace), sys.stdout, args.by, speed)
    return 0


def add_capsule(parser: Parser) -> None:
    parser.add_argument("trace", help="a trace file such as run.wb")
    parser.add_argument("-o", "--out", metavar="FILE", help="default: beside the trace, with the ending .html")
    parser.add_argument("--title", metavar="TEXT", help="heading (default: decoder and start of the prompt)")
    parser.add_argument("--note", metavar="TEXT", default="", help="what to look for, said below the heading")
    parser.add_argument("--overwrite", action="store_true", help="allow the file to exist")


def capsule(args: argparse.Namespace) -> int:
    from workbench.trace import Trace
    from workbench.trace.files import target

    trace = Trace.load(args.trace)
    path = Path(args.trace).with_suffix(".html") if args.out is None else args.out
    if target(path).exists() and not args.overwrite:
        raise BadInput(f"{path} exists already; choose another --out, or pass --overwrite")
    print(trace.capsule(path, args.title, args.note))
    return 0


def add_list(parser: Parser) -> None:
    from workbench.report.catalogue import KINDS

    parser.add_argument("what", choices=KINDS)
    parser.add_argument("name", nargs="?", help="show the parameters of this one")


def list_members(args: argparse.Namespace) -> int:
    """Names with a line each; with a name, its parameters with bounds and defaults."""
    from workbench.report.catalogue import about, listing

    print(about(args.what, args.name) if args.name else listing(args.what))
    return 0


def add_doctor(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out the self-tests of the kernels")


def doctor(args: argparse.Namespace) -> int:
    """Versions, devices, and what each operation runs here; exit code 1 where a self-test fails."""
    from workbench.report import doctor

    found = doctor.doctor(args.quick)
    if args.json:
        print_json(found)
    else:
        print(doctor.report(found))
    return 0 if found["passed"] else 1


def add_app(parser: Parser) -> None:
    parser.add_argument("trace", nargs="?", help="a trace file or a capsule to open the app on")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    more = {"action": "append", "default": []}
    parser.add_argument("--model", dest="models", metavar="MODEL", help="a model to offer (repeatable)", **more)
    parser.add_argument("--device", help="where models run: cpu (default), cuda, cuda:1 or auto")
    parser.add_argument("--dtype", help="float32, bfloat16, ... (default: float32 on a CPU)")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, help="open a browser")
    own = "what visitors have to know (default: a random one beyond this machine)"
    parser.add_argument("--token", metavar="TEXT", help=own)
    parser.add_argument("--no-token", dest="token", action="store_const", const="", help="let everyone in")
    frame = "let pages of that origin show the app in a frame (repeatable)"
    parser.add_argument("--allow-frame", metavar="ORIGIN", help=frame, **more)


def app(args: argparse.Namespace) -> int:
    """The app, until Ctrl-C."""
    from workbench.dashboard import launch

    launch(**{name: value for name, value in vars(args).items() if name != "command"})
    return 0


@dataclass(frozen=True)
class Command:
    """A command: a line of help, what it adds to its parser, and what it does (returns the exit code)."""

    help: str
    add: Callable[[Parser], None]
    execute: Callable[[argparse.Namespace], int]


def add_models(parser: Parser) -> None:
    what = "list them, fetch one, or train drafting parts for one"
    parser.add_argument("action", nargs="?", choices=("list", "get", "make"), default="list", help=what)
    parser.add_argument("name", nargs="?", help="the model, e.g. smollm2")
    parser.add_argument("--parts", default="medusa,hydra,eagle,kangaroo", help="what to train (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="of each part; run it again to go on")


def models(args: argparse.Namespace) -> int:
    """The models by name; with `get NAME`, fetch one and convert it; with `make NAME`, train what drafts for it."""
    if args.action == "list":
        return list_members(argparse.Namespace(what="models", name=args.name))
    if args.action == "make":
        return make(args)
    with preparing():
        from transformers.utils.logging import disable_progress_bar

        from workbench.report.catalogue import fetch

        disable_progress_bar()
    if args.name is None:
        raise BadInput("models get: expected a name, such as smollm2; `workbench models` lists them")
    said: list[str] = []

    def progress(step: str, done: int, total: int) -> None:
        if said[-1:] != [step]:
            said.append(step)
            print(f"{step}, {total / 1e6:.0f} MB …", file=sys.stderr)

    print(fetch(args.name, progress))
    return 0


def make(args: argparse.Namespace) -> int:
    """Train parts in the user's cache, where `weights=NAME` finds them; what is half done is gone on with."""
    if args.name is None:
        raise BadInput("models make: expected a model, such as smollm2; `workbench models` lists them")
    from workbench_kernels.native import cache_folder

    folder = cache_folder("parts") / Path(args.name).name
    for part in args.parts.split(","):
        command = [sys.executable, "-m", "workbench.training", part, "--target", args.name, "--out", str(folder),
                   "--text", "400000"]  # fmt: skip
        if args.minutes:
            command += ["--minutes", str(args.minutes)]
        if status := subprocess.run(command, check=False).returncode:
            return status
    print(f"made for {args.name}: {args.parts}; drafters take them by weights={folder.name!r}")
    return 0


COMMANDS = {
    "run": Command("decode a prompt", add_run, run),
    "list": Command(f"{MEMBERS}, models, refusals", add_list, list_members),
    "models": Command("the models by name; fetch one that is offered, train parts for one", add_models, models),
    "show": Command("the figures and tables of a trace", add_show, show),
    "replay": Command("watch a recorded run again, without the model", add_replay, replay_run),
    "capsule": Command("a recorded run as one offline HTML file", add_capsule, capsule),
    "compare": Command("decoders side by side on the same prompts", add_compare, compare_arms),
    "verify": Command("is a decoder lossless? what it guarantees against what it does", add_verify, verify),
    "doctor": Command("what is installed, what runs where, and self-tests of the kernels", add_doctor, doctor),
    "app": Command("open the app", add_app, app),
    "lab": Command("open the tutorial notebooks in JupyterLab", lab.add_options, lab.lab),
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
