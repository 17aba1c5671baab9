"""Runs that are killed with SIGKILL while they write: what was acknowledged is in the file, and every file opens.

`python -m tests.campaigns.kills [--kills 1000] [--commands 12]` prints a table and writes
`benchmarks/results/trust-kills.json`.
"""

import argparse
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import workbench as wb
from tests.campaigns.writing import ARMS, reference, report, session

__all__ = ["killed", "killed_command"]

TOKENS = 60
PROMPT = "def fibonacci(n):"


def killed(arm: str, path: Path, after: int, pause: float, old: bytes | None = None) -> dict[str, int]:
    """One run in a process of its own, killed `pause` seconds after it has told of `after` rounds.

    old: what lies there before, to be overwritten. Returns what was counted.
    """
    path.unlink(missing_ok=True)
    if old is not None:
        path.write_bytes(old)
    hears, tells = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(hears)
            one = session(arm, TOKENS, out=path, overwrite=old is not None)
            os.write(tells, b"0\n")
            for _ in one:
                os.write(tells, b"%d\n" % one.length)
            os.close(tells)
            time.sleep(60)  # until it is killed
        finally:
            os._exit(1)
    os.close(tells)
    told = heard(hears, after)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told += heard(hears, 10**6)
    os.close(hears)
    return judged(arm, path, [int(line) for line in told.split()], old)


def heard(pipe: int, lines: int) -> bytes:
    """What a run tells, up to a number of lines or its end."""
    told = b""
    while told.count(b"\n") < lines and select.select([pipe], [], [], 60)[0]:
        if not (piece := os.read(pipe, 4096)):
            break
        told += piece
    return told


def judged(arm: str, path: Path, told: list[int], old: bytes | None) -> dict[str, int]:
    """Compare a file with what was acknowledged, and with the run undisturbed."""
    left = {"left over": len([found for found in path.parent.glob(".*.tmp") if not found.unlink()])}
    if old is not None and path.read_bytes() == old:
        return {"killed before": 1, "lost": max(told, default=0), **left}
    if not path.exists():
        return {"killed before": 1, "lost": len(told), **left}
    try:
        trace = wb.Trace.load(path)
    except wb.WorkbenchError:
        return {"unreadable": 1, **left}
    ids, acknowledged = trace.token_ids, max(told, default=0)
    wrong = ids != reference(arm, TOKENS)[: len(ids)]
    again = wb.Session(wb.ToyModel(), [0], out=path, overwrite=True)  # the lock has gone with the process
    again.end()
    return {
        "killed while it wrote": int(0 < len(ids) < TOKENS),
        "killed after the end": int(len(ids) == TOKENS),
        "tokens acknowledged": acknowledged,
        "tokens read": len(ids),
        "lost": max(acknowledged - len(ids), 0),
        "wrong": int(wrong),
        "cut lines": len(trace.dropped),
        **left,
    }


def killed_command(path: Path, after: int) -> dict[str, int]:
    """`workbench run`, killed once it has printed that many characters."""
    path.unlink(missing_ok=True)
    words = ["run", PROMPT, "--max-new-tokens", "2000", "--ignore-eos", "--quiet", "--out", str(path)]
    command = subprocess.Popen([sys.executable, "-m", "workbench", *words], stdout=subprocess.PIPE)
    printed = b""
    while len(printed) < after and (piece := os.read(command.stdout.fileno(), 4096)):
        printed += piece
    command.kill()
    printed += command.stdout.read()
    command.wait()
    trace = wb.Trace.load(path)
    shown = printed.decode(errors="ignore")
    return {"killed while it wrote": 1, "lost": int(not trace.text.startswith(shown)), "cut lines": len(trace.dropped)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="of runs in forked processes, over all arms")
    parser.add_argument("--commands", type=int, default=12, help="of `workbench run`")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.wb"
        wb.decode(wb.ToyModel(), [0, 1], max_new_tokens=20, out=path)
        old = path.read_bytes()
        for place, arm in enumerate(ARMS):
            count: Counter = Counter()
            ids = reference(arm, TOKENS)
            assert len(ids) == TOKENS
            kills = args.kills // len(ARMS) + (place < args.kills % len(ARMS))
            for number in range(kills):
                count.update(
                    killed(arm, path, draw.randrange(40), draw.uniform(0, 0.01), old if number % 4 == 3 else None)
                )
            rows.append({"arm": arm, "kills": kills, **count})
            print(rows[-1], flush=True)
        count = Counter()
        for _ in range(args.commands):
            count.update(killed_command(path, draw.randrange(1, 400)))
        rows.append({"arm": "workbench run, embedded", "kills": args.commands, **count})
    report("kills", f"runs of {TOKENS} tokens killed with SIGKILL at random times; a fourth overwrites a file", rows)


if __name__ == "__main__":
    main()
