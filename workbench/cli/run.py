"""`workbench run`: decode a prompt."""

import argparse
import sys
from pathlib import Path
from typing import Any

from workbench.cli import options
from workbench.cli.preparing import preparing, undisturbed
from workbench.errors import BadInput, shown


def add_run(parser: options.Parser) -> None:
    parser.add_argument("prompt", nargs="?", help="the text to continue")
    parser.add_argument("--prompt-file", metavar="FILE", help="the prompt from a UTF-8 file (-: standard input)")
    parser.add_argument("--chat", action="store_true", help="give the prompt as a chat message of the user")
    options.add_model(parser)
    parser.add_argument("--decoder", default="autoregressive", help="see: workbench list decoders")
    options.add_members(parser, "a parameter: shape.length=4, cache.budget=128")
    options.add_settings(parser)
    parser.add_argument("--force-ids", metavar="IDS", help="token ids to score instead of sampling, e.g. 12,7,99")
    parser.add_argument("--until", metavar="CONDITION", help="stop after the first such token or round: 'entropy > 3'")
    parser.add_argument("--out", metavar="FILE", help="write the trace here as it happens, e.g. run.wb")
    parser.add_argument("--overwrite", action="store_true", help="allow --out to exist")
    parser.add_argument("--json", action="store_true", help="print the text and all figures as JSON instead")
    parser.add_argument("--quiet", action="store_true", help="print the text alone")


def run(args: argparse.Namespace) -> int:
    """Decode a prompt: the text to stdout as it comes, the main figures to stderr."""
    with preparing():
        from workbench import conditions
        from workbench.declare import build
        from workbench.report.headline import headline
        from workbench.report.terminal import stream
        from workbench.session import Session

    holds = conditions.parse(args.until) if args.until else None
    held, values = options.members_of(args)
    settings = options.settings_of(args) | held
    decoder = build("decoder", args.decoder, values)
    if args.force_ids:
        settings["force"] = ids_of(args.force_ids)
        count = len(settings["force"])
        settings["max_new_tokens"] = min(settings.get("max_new_tokens", count), count)
    prompt, lm = prompt_of(args), options.load_model(args)
    session = Session(lm, prompt, decoder, out=args.out, overwrite=args.overwrite, **settings)
    code, sent = 0, 0

    def show(stop: int | None = None) -> None:
        """Print the new text that was not yet shown, to the cursor or to token `stop`."""
        nonlocal sent
        if not args.json:
            stream(session.text_from(sent, stop))
            sent = session.cursor if stop is None else stop

    try:
        while not session.ended:
            row = session.run(until=holds, rounds=1)
            with undisturbed():
                show()
            if row is not None:
                session.end("stop", f"until {args.until}")
                break
    except KeyboardInterrupt:
        session.end("interrupted")
        show(session.length)
        code = 130
    finally:
        show()
        if sent:
            print(session.unfinished, flush=True)
    if args.json:
        options.print_json({"text": session.trace.text, "trace": args.out, **session.trace.summary()})
    elif not args.quiet:
        facts = headline(session.trace) | ({"trace": args.out} if args.out else {})
        print("\n" + "\n".join(f"{name:>23}  {value}" for name, value in facts.items()), file=sys.stderr)
    return code


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
