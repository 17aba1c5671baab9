"""Headroom against real runs: every drafter it accepts, under many caches, shapes, prompts and temperatures.

`python -m tests.campaigns.replay [--prompts 4] [--tokens 40]` prints a table and writes its figures.
"""

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path

import torch

import workbench as wb
from tests.experiments.test_replay import FLAT, compared, noisy
from tests.speculation.tiny import tiny_heads, tiny_target

RESULT = Path(__file__).parents[2] / "benchmarks/results/trust-replay.json"
CACHES = {
    "none": None,
    "StreamingLLM": wb.StreamingLLM(sinks=2, window=10, interval=8),
    "H2O": wb.H2O(budget=12, interval=8),
    "SnapKV": wb.SnapKV(budget=16, window=8),
    "KIVI": wb.KIVI(residual=32),
    "H2O + KIVI": [wb.H2O(budget=64, recent=32), wb.KIVI(residual=32)],
}
SHAPES = {("fixed", str(k)): wb.FixedLength(k) for k in (1, 2, 3, 4, 6, 8, 12)}
SHAPES |= {("confidence", f"{t:g}"): wb.ConfidenceStop(12, t) for t in (0.2, 0.4, 0.6, 0.8)}
SHAPES |= {("tree", "×".join(map(str, b))): wb.FixedTree(b) for b in ((2, 1, 1), (2, 2, 1, 1), (4, 2, 2))}
SHAPES[("heuristic", "+2/−1 from 4")] = wb.HeuristicLength(start=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    target = tiny_target(vocabulary=12, width=32)
    noisy("replay-near")
    with tempfile.TemporaryDirectory() as folder:
        drafters = {
            "DraftModel": wb.DraftModel("replay-near"),
            "Kangaroo": wb.Kangaroo(weights=tiny_heads(target, "kangaroo", Path(folder), steps=2), exits=(1,)),
            "Kangaroo without adapter": wb.Kangaroo(weights=None, exits=(1,)),
        }
        rows = []
        for drafter, member in drafters.items():
            for cache, stack in CACHES.items():
                row = {
                    "drafter": drafter,
                    "cache": cache,
                    "runs": 0,
                    "rounds differ": 0,
                    "drafted or accepted differ": 0,
                }
                for prompt in range(args.prompts):
                    ids = [(prompt + 5) * number % 12 for number in range(20 + 13 * prompt)]
                    for temperature in (0.0, 0.8):
                        settings = {"max_new_tokens": args.tokens, "temperature": temperature, "cache": stack}
                        decoder = wb.Speculative(member, wb.FixedLength(3))
                        trace = wb.decode(target, ids, decoder, level="full", **settings)
                        table = wb.headroom(trace, FLAT).set_index(["shape", "setting"])
                        for key, shape in SHAPES.items():
                            run = wb.decode(target, ids, wb.Speculative(member, shape), **settings)
                            rounds, rest = compared(run, table.loc[key], key)
                            row["runs"] += 1
                            row["rounds differ"] += not rounds
                            row["drafted or accepted differ"] += not rest
                rows.append(row)
                print(row, flush=True)
    facts = {"date": str(date.today()), "machine": platform.machine(), "torch": torch.__version__}
    RESULT.write_text(json.dumps({**facts, "python": platform.python_version(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
