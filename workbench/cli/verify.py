"""`workbench verify`: the losslessness meter."""

import argparse
import sys
from dataclasses import asdict

from workbench.cli import preparing
from workbench.cli.options import Parser, add_cache, add_model, cache_of, load_model, pairs, print_json

__all__ = ["add_verify", "verify"]


def add_verify(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("--decoder", default="speculative", help="a name from `workbench list decoders`")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of it")
    add_cache(parser)
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

    values = pairs(args.set)
    stack = cache_of(args, values)
    decoder = build("decoder", args.decoder, values)
    how = {"tokens": args.tokens, "temperature": args.temperature, "runs": args.runs, "progress": sys.stderr.isatty()}
    found = lossless(decoder, load_model(args), args.prompt, cache=stack, **how)
    if args.json:
        print_json({**asdict(found), "badge": found.badge, "holds": found.holds})
    else:
        print(found)
    return 1 if found.holds is False else 0
