"""Many hostile inputs: `python -m tests.hostile --examples 100000`. Prints a table, and keeps it as JSON."""

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.hostile.runner import MEGABYTES, SECONDS, Report, corpora, run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "trust-hostile.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000, help="over all corpora (default 100000)")
    parser.add_argument("--only", default="", help="corpora whose name contains this")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    args = parser.parse_args()
    chosen = {name: pair for name, pair in corpora().items() if args.only in name}
    if not chosen:
        parser.error(f"no corpus is called like {args.only!r}; there are: {', '.join(corpora())}")
    reports = []
    for name, pair in chosen.items():
        reports.append(run(name, pair, -(-args.examples // len(chosen)), args.seed))
        print(line(reports[-1]), flush=True)
    faults = sum(len(report.faults) for report in reports)
    print(f"{sum(report.examples for report in reports)} inputs, {faults} faults")
    args.out.write_text(json.dumps(facts(reports, args), indent=2) + "\n", encoding="utf-8")
    return 1 if faults else 0


def line(report: Report) -> str:
    head = (
        f"{report.name:24s} {report.examples:7d} inputs {report.refused:7d} refused  slowest {report.slowest_s:6.2f} s"
        f"  {report.peak_mb:5.0f} MB above  {len(report.faults)} faults"
    )
    return "\n".join(
        [head, *(f"    {count:6d} × {kind}: {example}" for kind, (count, example) in report.faults.items())]
    )


def facts(reports: list[Report], args: argparse.Namespace) -> dict:
    return {
        "what": "hostile inputs: each is taken, or refused in one line",
        "command": f"python -m tests.hostile --examples {args.examples} --seed {args.seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "hypothesis")},
        "limits": {"seconds": SECONDS, "megabytes": MEGABYTES},
        "corpora": [
            {
                "name": report.name,
                "inputs": report.examples,
                "refused": report.refused,
                "slowest_s": round(report.slowest_s, 3),
                "megabytes_above": round(report.peak_mb, 1),
                "faults": {kind: count for kind, (count, _) in report.faults.items()},
            }
            for report in reports
        ],
    }


sys.exit(main())
