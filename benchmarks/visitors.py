"""Several visitors of the app at once, each watching runs of its own: what they get, and what watching costs.

    python benchmarks/visitors.py [--visitors 10] [--seconds 300] [--out benchmarks/results/visitors.json]

The visitors are pages without a browser or a server: they call the handlers a page calls, at the pace of the app's
timer. Reported: looks per second while decoding and how long a look took, errors and runs, the processor time of
looking over that of decoding, texts that were not what the same prompt gives alone, and memory before and after.
"""

import argparse
import json
import os
import resource
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import workbench as wb
from workbench.dashboard import transport
from workbench.dashboard.page_load import closed
from workbench.dashboard.run import Worker
from workbench.dashboard.visit import VISITS, Visit
from workbench.pretrained.prompts import held_out_prompts

TOKENS = 48


class Wanted:
    """A form that always asks for the same decoder."""

    def __init__(self, prompt: str):
        self.wanted = SimpleNamespace(
            prompt=prompt,
            decoder=wb.Speculative(),
            settings={"max_new_tokens": TOKENS},
            load=lambda: wb.load("embedded"),
        )

    def read(self, values: Any) -> SimpleNamespace:
        return self.wanted


def visitor(number: int, until: float, found: dict[str, Any]) -> None:
    """Run, watch to the end, step back and forward, forget; over and over."""
    rows = held_out_prompts()
    name, visit = f"visitor {number}", Visit()
    VISITS[name] = visit
    prompt = rows[number % len(rows)]["prompt"][-400:]
    pace = ("round", "full speed", "")
    while time.monotonic() < until:
        transport.go(visit, *pace, Wanted(prompt))
        worker: Worker = visit.worker
        looks, started = 0, time.monotonic()
        while visit.playing:
            time.sleep(transport.BEAT_S)
            live = worker.is_alive()
            wall, cpu = time.perf_counter(), time.thread_time()
            shown = transport.tick(visit)
            found["look_cpu_s"] += (time.thread_time() - cpu) if live else 0.0
            if live and isinstance(shown[0], str):
                looks += 1
                found["look_s"].append(time.perf_counter() - wall)
        spent = time.monotonic() - started
        if looks > 3:
            found["looks_per_s"].append(looks / spent)
        found["decode_cpu_s"] += worker.cpu_s
        found["texts"].append((number, visit.branch.run.trace.text))
        found["errors"] += bool(worker.error)
        transport.back(visit, "round")
        transport.step(visit, "phase")
        visit.close()
        found["runs"] += 1
    closed(SimpleNamespace(session_hash=name))


def measure(visitors: int, seconds: float) -> dict[str, Any]:
    """The figures of `visitors` at once for some seconds."""
    lm = wb.load("embedded")
    wb.decode(lm, "def f(x):", wb.Speculative(), max_new_tokens=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    until = time.monotonic() + seconds
    each = [
        {"look_s": [], "look_cpu_s": 0.0, "looks_per_s": [], "decode_cpu_s": 0.0, "texts": [], "errors": 0, "runs": 0}
        for _ in range(visitors)
    ]
    crowd = [threading.Thread(target=visitor, args=(n, until, found)) for n, found in enumerate(each)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    rows = held_out_prompts()
    texts = Counter(text for found in each for text in found["texts"])
    alone = {
        n: wb.decode(lm, rows[n % len(rows)]["prompt"][-400:], wb.Speculative(), max_new_tokens=TOKENS).text
        for n in range(visitors)
    }
    looks = sorted(one for found in each for one in found["look_s"])
    rates = [one for found in each for one in found["looks_per_s"]]
    decode = sum(found["decode_cpu_s"] for found in each)
    return {
        "visitors": visitors,
        "seconds": seconds,
        "cores": os.cpu_count(),
        "runs": sum(found["runs"] for found in each),
        "errors": sum(found["errors"] for found in each),
        "mixed_texts": sum(count for (n, text), count in texts.items() if text != alone[n]),
        "looks_per_s_median": median(rates) if rates else None,
        "look_ms_median": 1000 * median(looks) if looks else None,
        "look_ms_p95": 1000 * looks[int(0.95 * len(looks))] if looks else None,
        "look_cpu_over_decode_cpu": sum(found["look_cpu_s"] for found in each) / decode if decode else None,
        "peak_memory_before_mib": before / 1024,
        "peak_memory_after_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "left_open": sum(bool(visit.branches) for visit in list(VISITS.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--visitors", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measure(args.visitors, args.seconds)
    print(json.dumps(found, indent=2))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
