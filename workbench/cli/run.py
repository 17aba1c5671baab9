"""`workbench run`: decode a prompt."""

import argparse
import sys
from pathlib import Path
from typing import Any

from workbench.cli.options import (
    Parser,
    add_cache,
    add_model,
    add_settings,
    cache_of,
    load_model,
    pairs,
    print_json,
    settings_of,
)
from workbench.cli.preparing import preparing
from workbench.errors import BadInput, shown

__all__ = ["add_run", "run"]


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
    with preparing():
        from workbench import conditions
        from workbench.declare import build
        from workbench.report.terminal import undisturbed
        from workbench.session import Session

    holds = conditions.parse(args.until) if args.until else None
    values = pairs(args.set)
    settings = settings_of(args) | {"cache": cache_of(args, values)}
    decoder = build("decoder", args.decoder, values)
    if args.force_ids:
        settings["force"] = ids_of(args.force_ids)
        count = len(settings["force"])
        settings["max_new_tokens"] = min(settings.get("max_new_tokens", count), count)
    prompt = prompt_of(args)
    session = Session(load_model(args), prompt, decoder, out=args.out, overwrite=args.overwrite, **settings)
    code, sent = 0, 0
    try:
        while not session.ended:
            row = session.run(until=holds, rounds=1)
            if not args.json:
                with undisturbed():
                    sent = show_new(session, sent)
            if row is not None:
                session.end("stop", f"until {args.until}")
                break
    except KeyboardInterrupt:
        session.end("interrupted")
        sent = sent if args.json else show_new(session, sent, session.length)
        code = 130
    finally:
        sent = sent if args.json else show_new(session, sent)
        if sent:
            print(session.unfinished, flush=True)
    report(session.trace, args)
    return code


def show_new(session, sent: int, stop: int | None = None) -> int:
    """Print the new text from new token `sent` on, to the cursor or to `stop`; returns how many are shown now."""
    from workbench.report.terminal import stream

    stream(session.text_from(sent, stop))
    return session.cursor if stop is None else stop


def report(trace, args: argparse.Namespace) -> None:
    from workbench.report.headline import headline

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
    if name == "-" and sys.stdin is None:
        raise BadInput("--prompt-file -: there is no standard input; give the prompt as an argument")
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        return text.removeprefix("\ufeff")  # a byte order mark is not part of the text
    except UnicodeDecodeError:
        raise BadInput(f"{name} is not UTF-8 text; convert it first") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {shown(name)}: {reason}; expected a text file") from None
