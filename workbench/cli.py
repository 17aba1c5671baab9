"""The command line: `workbench run | list | show | replay | capsule | compare | doctor | app | lab`.

A command is one entry of `COMMANDS`: what it adds to its parser, and what it does. Options of sampling come from the
declaration of `Sampling`, parameters of decoders are given as `--set name=value`. Only the chosen command's parser is
built, so that help, `show` and `replay` need no torch. Errors are one line on stderr and exit code 2; Ctrl-C is 130.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workbench import __version__
from workbench.errors import BadInput, WorkbenchError

__all__ = ["main"]

TABLES = ("tokens", "rounds", "drafts", "forwards", "cache", "bits", "events")


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see: {self.prog} --help)")


# -- options that commands share ----------------------------------------------------------------------------------


def add_model(parser: Parser) -> None:
    parser.add_argument("--model", default="embedded", help="embedded, embedded-draft, a hub id or a local directory")
    parser.add_argument("--device", help="cpu (default), cuda, cuda:1 or auto")
    parser.add_argument("--dtype", help="float32, bfloat16, … (default: float32 on a CPU, else the checkpoint's own)")


def add_settings(parser: Parser) -> None:
    from workbench.declare import describe
    from workbench.engine.sampling import Sampling

    for entry in describe(Sampling):
        kind = int if entry.kind == "int" else float
        default = "off" if entry.default is None else entry.default
        text = f"{entry.help}; {entry.bounds}, default {default}"
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, metavar="N", help=text)
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all randomness, default 0")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end once the text contains this")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-text token")
    parser.add_argument("--level", default="default", help="off, default or full instrumentation")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    from workbench.session import SAMPLING

    chosen = {name: getattr(args, name) for name in SAMPLING if getattr(args, name, None) is not None}
    rest = ("max_new_tokens", "seed", "stop", "level", "ignore_eos")
    return chosen | {name: getattr(args, name) for name in rest}


def load_model(args: argparse.Namespace):
    from transformers.utils.logging import disable_progress_bar

    from workbench.engine.loading import load

    disable_progress_bar()
    return load(args.model, device=args.device, dtype=args.dtype)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises BadInput for any other text."""
    found = [text.partition("=") for text in texts]
    for (key, sign, _), text in zip(found, texts, strict=True):
        if not sign or not key.strip():
            raise BadInput(f"{text!r}: expected name=value, such as shape.length=4")
    return {key.strip(): value for key, _, value in found}


def add_cache(parser: Parser) -> None:
    text = "a policy or a quantizer, first the policy where both are given (repeatable); see: workbench list policies"
    parser.add_argument("--cache", action="append", default=[], metavar="NAME", help=text)


def cache_of(args: argparse.Namespace, values: dict[str, str]) -> Any:
    """The cache that `--cache` names, with its parameters `cache.…` taken out of the values of `--set`."""
    from workbench.cache.stack import stack_of

    return stack_of(args.cache, {key[6:]: values.pop(key) for key in list(values) if key.startswith("cache.")})


# -- run ----------------------------------------------------------------------------------------------------------


def add_run(parser: Parser) -> None:
    parser.add_argument("prompt", nargs="?", help="the text to continue")
    parser.add_argument("--prompt-file", metavar="FILE", help="the prompt from a UTF-8 file (-: standard input)")
    parser.add_argument("--chat", action="store_true", help="give the prompt as a chat message of the user")
    add_model(parser)
    parser.add_argument("--decoder", default="autoregressive", help="see: workbench list decoders")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter: shape.length=4, cache.budget=128"
    )
    add_cache(parser)
    add_settings(parser)
    parser.add_argument("--force-ids", metavar="IDS", help="token ids to score instead of sampling, e.g. 12,7,99")
    parser.add_argument("--until", metavar="CONDITION", help="stop after the first such token: 'entropy > 3'")
    parser.add_argument("--out", metavar="FILE", help="write the trace here as it happens, e.g. run.wb")
    parser.add_argument("--overwrite", action="store_true", help="allow --out to exist")
    parser.add_argument("--json", action="store_true", help="print the text and all figures as JSON instead")
    parser.add_argument("--quiet", action="store_true", help="print the text alone")


def run(args: argparse.Namespace) -> int:
    """Decode a prompt: the text to stdout as it comes, the main figures to stderr."""
    from workbench import conditions
    from workbench.declare import build
    from workbench.session import Session

    holds = conditions.parse(args.until) if args.until else None
    values = pairs(args.set)
    settings = settings_of(args) | {"cache": cache_of(args, values)}
    decoder = build("decoder", args.decoder, values)
    if args.force_ids:
        settings["force"] = ids_of(args.force_ids)
        settings["max_new_tokens"] = min(settings["max_new_tokens"], len(settings["force"]))
    prompt = prompt_of(args)
    session = Session(load_model(args), prompt, decoder, out=args.out, overwrite=args.overwrite, **settings)
    code, sent = 0, 0
    try:
        while not session.ended:
            row = session.run(until=holds, rounds=1)
            sent = sent if args.json else show_new(session, sent)
            if row is not None:
                session.end("stop", f"until {args.until}")
                break
    except KeyboardInterrupt:
        session.end("interrupted")
        code = 130
    finally:
        if sent:
            print(flush=True)
    report(session.trace, args)
    return code


def show_new(session, sent: int) -> int:
    from workbench.terminal import stream

    text = session.text
    stream(text[sent:])
    return len(text)


def report(trace, args: argparse.Namespace) -> None:
    from workbench.headline import headline

    if args.json:
        print_json({"text": trace.text, "trace": args.out, **trace.summary()})
    elif not args.quiet:
        facts = headline(trace) | ({"trace": args.out} if args.out else {})
        print("\n" + "\n".join(f"{name:>23}  {value}" for name, value in facts.items()), file=sys.stderr)


def ids_of(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise BadInput(f"--force-ids: expected integers such as 12,7,99, got {text!r}") from None


def prompt_of(args: argparse.Namespace) -> Any:
    if (args.prompt is None) == (args.prompt_file is None):
        raise BadInput("run: expected a prompt, or --prompt-file FILE (not both)")
    text = args.prompt if args.prompt_file is None else read_text(args.prompt_file)
    return [{"role": "user", "content": text}] if args.chat else text


def read_text(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{name} is not UTF-8 text; convert it first") from None
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror}; expected a text file") from None


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


# -- list ---------------------------------------------------------------------------------------------------------


def add_list(parser: Parser) -> None:
    from workbench.catalog import KINDS

    parser.add_argument("what", choices=KINDS)
    parser.add_argument("name", nargs="?", help="show the parameters of this one")


def list_members(args: argparse.Namespace) -> int:
    """Names with a line each; with a name, its parameters with bounds and defaults."""
    from workbench.catalog import about, listing

    print(about(args.what, args.name) if args.name else listing(args.what))
    return 0


# -- show and replay ------------------------------------------------------------------------------------------------


def add_show(parser: Parser) -> None:
    parser.add_argument("trace", help="a trace file such as run.wb")
    parser.add_argument("--table", choices=TABLES, help="print one table")
    parser.add_argument("--rows", type=int, default=40, metavar="N", help="rows of the table (default 40; 0 shows all)")
    parser.add_argument("--parquet", metavar="DIR", help="write every table as a Parquet file into a folder")
    parser.add_argument("--perfetto", metavar="FILE", help="write the timeline for ui.perfetto.dev, e.g. out.json")
    parser.add_argument("--json", action="store_true", help="print the run's settings and all figures as JSON")


def show(args: argparse.Namespace) -> int:
    """The main figures of a trace, its text, and a table."""
    from workbench.headline import headline
    from workbench.terminal import escaped, table
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
    from workbench.terminal import replay
    from workbench.trace import Trace

    speed = args.speed if args.speed is not None else 1.0 if sys.stdout.isatty() else float("inf")
    if not speed > 0:
        raise BadInput(f"--speed: expected a number above 0, got {speed:g}")
    replay(Trace.load(args.trace), sys.stdout, args.by, speed)
    return 0


def add_capsule(parser: Parser) -> None:
    from workbench.capsule import add_options

    add_options(parser)


def capsule(args: argparse.Namespace) -> int:
    from workbench.capsule import convert

    print(convert(args.trace, args.out, args.title, args.overwrite))
    return 0


# -- compare --------------------------------------------------------------------------------------------------------


def add_compare(parser: Parser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--held-out", type=int, default=0, metavar="N", help="add the first N held-out prompts")
    arm = "a decoder to compare, e.g. spec=speculative,drafter=copyspec,shape.length=4 (the first is the baseline)"
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=DECODER,…", help=arm)
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each; the fastest counts")
    add_model(parser)
    add_cache(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of the cache: cache.budget=128"
    )
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def compare_arms(args: argparse.Namespace) -> int:
    """Decoders side by side on the same prompts."""
    from workbench.experiments.compare import compare
    from workbench.pretrained.prompts import held_out_prompts

    prompts = args.prompts + [row["prompt"] for row in held_out_prompts(max(args.held_out, 0))]
    arms = dict(arm_of(text) for text in args.arm)
    if not prompts or not arms:
        raise BadInput("compare: expected at least one prompt (or --held-out N) and one --arm name=decoder")
    values = pairs(args.set)
    settings = settings_of(args) | {"cache": cache_of(args, values)}
    if values:
        raise BadInput(
            f"compare --set {next(iter(values))}: expected a parameter of the cache, such as cache.budget=128"
        )
    progress = sys.stderr.isatty()
    lm = load_model(args)
    found = compare(lm, prompts, arms, repeats=args.repeats, progress=progress, **settings)
    if args.json:
        print_json(json.loads(found.to_json(orient="index")))
    else:
        shown = {name: [f"{v:.3g}" if isinstance(v, float) else v for v in row] for name, row in found.items()}
        print(type(found)(shown, index=found.index).T.to_string())
    return 0


def arm_of(text: str) -> tuple[str, Any]:
    """`name=decoder,parameter=value,…` as a name and a decoder; a piece without = goes on the value before it."""
    from workbench.declare import build

    name, sign, rest = text.partition("=")
    first, *pieces = rest.split(",")
    if not sign or not name or not first:
        raise BadInput(f"--arm {text!r}: expected name=decoder,parameter=value,…")
    joined: list[str] = []
    for piece in pieces:
        if "=" in piece or not joined:
            joined.append(piece)
        else:
            joined[-1] += f",{piece}"
    return name, build("decoder", first, pairs(joined))


# -- doctor -------------------------------------------------------------------------------------------------------


def add_doctor(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out the self-tests of the kernels")


def doctor(args: argparse.Namespace) -> int:
    """Versions, devices, and what each operation runs here; exit code 1 where a self-test fails."""
    from workbench import diagnosis

    found = diagnosis.doctor(args.quick)
    if args.json:
        print_json(found)
    else:
        print(diagnosis.report(found))
    return 0 if found["passed"] else 1


# -- app and lab ----------------------------------------------------------------------------------------------------


def add_app(parser: Parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--model", action="append", default=[], help="a model to offer (repeatable)")
    browser = argparse.BooleanOptionalAction
    parser.add_argument("--browser", action=browser, default=None, help="open a browser")


def app(args: argparse.Namespace) -> int:
    """The app, until Ctrl-C."""
    from workbench.dashboard import launch

    launch(host=args.host, port=args.port, models=args.model, browser=args.browser)
    return 0


def add_lab(parser: Parser) -> None:
    from workbench.lab import add_options

    add_options(parser)


def lab(args: argparse.Namespace) -> int:
    from workbench.lab import start

    return start(folder=args.folder, port=args.port, browser=args.browser)


# -- the whole ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command: a line of help, what it adds to its parser, and what it does (returns the exit code)."""

    help: str
    add: Callable[[Parser], None]
    execute: Callable[[argparse.Namespace], int]


COMMANDS = {
    "run": Command("decode a prompt", add_run, run),
    "list": Command("decoders, drafters, shapes, verifiers, policies, quantizers, models", add_list, list_members),
    "show": Command("the figures and tables of a trace", add_show, show),
    "replay": Command("watch a recorded run again, without the model", add_replay, replay_run),
    "capsule": Command("a recorded run as one offline HTML file", add_capsule, capsule),
    "compare": Command("decoders side by side on the same prompts", add_compare, compare_arms),
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
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        return fail("out of memory; use a smaller model or fewer tokens (a trace under --out is kept)")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away; keep Python from saying so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def fail(message: str) -> int:
    from workbench.terminal import escaped

    print(f"workbench: {' '.join(escaped(message).split())}", file=sys.stderr)
    return 2
