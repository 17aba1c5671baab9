"""`workbench compare | verify`: decoders side by side on the same prompts, and the losslessness meter."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import Any

from workbench.cli import options
from workbench.cli.preparing import preparing
from workbench.errors import BadInput


def add_compare(parser: options.Parser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--held-out", type=int, default=0, metavar="N", help="add the first N held-out prompts")
    arm = "a decoder to compare, e.g. spec=speculative,drafter=copyspec,shape.length=4 (the first is the baseline)"
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=DECODER,…", help=arm)
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each; the fastest counts")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts decoded side by side")
    options.add_model(parser)
    options.add_members(parser, "of the cache: cache.budget=128")
    options.add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def compare_arms(args: argparse.Namespace) -> int:
    """Decoders side by side on the same prompts."""
    with preparing():
        from workbench import held_out_prompts
        from workbench.experiments.compare import compare

    prompts = args.prompts + [row["prompt"] for row in held_out_prompts(max(args.held_out, 0))]
    arms = dict(arm_of(text) for text in args.arm)
    if not prompts or not arms:
        raise BadInput("compare: expected at least one prompt (or --held-out N) and one --arm name=decoder")
    held, others = options.members_of(args)
    for name in others:
        raise BadInput(f"compare --set {name}: expected one of the cache or the constraint, such as cache.budget=128")
    how = {"repeats": args.repeats, "batch_size": args.batch_size, "progress": sys.stderr.isatty(), **held}
    how |= options.settings_of(args)
    found = compare(options.load_model(args), prompts, arms, **how)
    if args.json:
        options.print_json(json.loads(found.to_json(orient="index")))
    else:
        shown = {name: [f"{v:.3g}" if isinstance(v, float) else v for v in row] for name, row in found.items()}
        print(type(found)(shown, index=found.index).T.to_string())
    return 0


def arm_of(text: str) -> tuple[str, Any]:
    """`name=decoder,parameter=value,…` as a name and a decoder; a piece without = goes on the value before it."""
    from workbench.declare import build

    name, sign, rest = text.partition("=")
    first, comma, more = rest.partition(",")
    if not sign or not name or not first:
        raise BadInput(f"--arm {text!r}: expected name=decoder,parameter=value,…")
    pieces = re.split(r",(?=[^,]*=)", more) if comma else []
    return name, build("decoder", first, options.pairs(pieces))


def add_verify(parser: options.Parser) -> None:
    options.add_model(parser)
    parser.add_argument("--decoder", default="speculative", help="a name from `workbench list decoders`")
    options.add_members(parser, "a parameter of it")
    parser.add_argument("--prompt", action="append", help="a text to decode from (several: give it again)")
    parser.add_argument("--tokens", type=int, default=48, help="length of the compared texts (default 48)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sampled texts (default 0.8)")
    parser.add_argument("--runs", type=int, default=2000, help="short runs to count where seeds differ (default 2000)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def verify(args: argparse.Namespace) -> int:
    """What a decoder guarantees and what it does; exit code 1 where the guarantee does not hold."""
    with preparing():
        from workbench.declare import build
        from workbench.experiments import lossless

    held, values = options.members_of(args)
    decoder = build("decoder", args.decoder, values)
    how = {"tokens": args.tokens, "temperature": args.temperature, "runs": args.runs, "progress": sys.stderr.isatty()}
    found = lossless(decoder, options.load_model(args), args.prompt, **held, **how)
    if args.json:
        options.print_json({**asdict(found), "badge": found.badge, "holds": found.holds})
    else:
        print(found)
    return 1 if found.holds is False else 0
