"""`workbench show | replay | capsule`: what was recorded, without a model."""

import argparse
import sys

from workbench.cli.options import Parser, print_json
from workbench.errors import BadInput

__all__ = ["add_capsule", "add_replay", "add_show", "capsule", "replay_run", "show"]

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
    from workbench.report.capsule import add_options

    add_options(parser)


def capsule(args: argparse.Namespace) -> int:
    from workbench.report.capsule import convert

    print(convert(args.trace, args.out, args.title, args.overwrite))
    return 0
