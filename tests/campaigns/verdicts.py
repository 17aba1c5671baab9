"""How often the losslessness meter is wrong: verdicts on decoders that are honest, and on some that are not.

`python -m tests.campaigns.verdicts [--verdicts 400] [--runs 400]` prints a table and writes its figures.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import torch
from tqdm.auto import tqdm

import workbench as wb
from tests.experiments.test_cheaters import Deep, Oracle, Plain, Repeating, Stale, Truncating, measured
from workbench.speculation.verifiers import Rejection

RESULT = Path(__file__).parents[2] / "benchmarks/results/trust-verdicts.json"
DECODERS = {
    "plain, noise of its own": (True, lambda: Plain()),
    "drafts of depth 6, rejection": (True, lambda: wb.Speculative(drafter=Oracle(), verifier=Rejection())),
    "always the 4 likeliest": (False, lambda: Truncating()),
    "deep drafts stand": (False, lambda: wb.Speculative(drafter=Oracle(), verifier=Deep())),
    "noise of the round before": (False, lambda: Repeating()),
    "distribution of the round before": (False, lambda: Stale()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verdicts", type=int, default=400, help="for every honest decoder; a tenth for the others")
    parser.add_argument("--runs", type=int, default=400)
    args = parser.parse_args()
    rows = []
    for name, (honest, make) in DECODERS.items():
        seeds = range(args.verdicts if honest else max(1, args.verdicts // 10))
        found = [measured(make(), args.runs, seed=seed * 10**7) for seed in tqdm(seeds, desc=name)]
        row = {"decoder": name, "honest": honest, "verdicts": len(found), "runs": args.runs}
        row["lossy"] = sum(one.sampled == "lossy" for one in found)
        for gate in ("p_value", "uncut_p_value"):
            p = torch.tensor([getattr(one, gate) for one in found])
            row[gate] = {"smallest": float(p.min())} | {f"below {at}": int((p < at).sum()) for at in (0.1, 0.01, 0.001)}
        rows.append(row)
        print(row)
    facts = {
        "date": str(date.today()),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    RESULT.write_text(json.dumps({**facts, "python": platform.python_version(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
