"""Ctrl-C at sampled points: between any two steps of the interpreter inside a session or its recorder, and by signal.

`python -m tests.campaigns.interrupts [--points 300]` prints a table and writes
`benchmarks/results/trust-interrupts.json`.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import workbench
from tests.campaigns.writing import ARMS, check, reference, report, session

__all__ = ["SCOPES", "at_points", "by_signal"]

TOKENS = 30
HOME = Path(workbench.__file__).parent
RECORDER = [str(HOME / "trace" / f"{name}.py") for name in ("recorder", "files", "index", "storage", "columns")]
SCOPES: dict[str, Callable[[str], bool]] = {
    "session.run": lambda file: file.startswith(str(HOME)),
    "recorder": lambda file: file in RECORDER,
}


@contextmanager
def interrupting(inside: Callable[[str], bool], at: int) -> Iterator[list[int]]:
    """While open, KeyboardInterrupt is raised before the `at`-th instruction inside; gives a list with their number."""
    count = [0]

    def trace(frame: FrameType, event: str, argument: Any):
        if not inside(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count[0] += 1
            if count[0] == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def course(one, folder: Path) -> None:
    """A run with what may come in between; begun again after an interrupt, it goes on from where it is."""
    one.run(rounds=4)
    one.jump(1)
    one.run(until="rank > 2")
    one.back(2, by="token")
    one.jump(one.length)
    if one.length < TOKENS:
        branch = one.fork(at=one.length, seed=9, out=folder / f"branch-{len(list(folder.iterdir()))}.wb")
        branch.run(rounds=1)
        branch.end()
        assert workbench.Trace.load(branch._recorder._file.path).log == branch.trace.log
    one.end("interrupted")
    one.run(until="rank > 3")
    one.run()


def once(arm: str, folder: Path, inside: Callable[[str], bool], at: int) -> int:
    """One course with an interrupt at one instruction; returns how many there were up to the end or there."""
    for old in folder.iterdir():
        old.unlink()
    one, told = session(arm, TOKENS, out=folder / "run.wb"), 0
    try:
        with interrupting(inside, at) as count:
            course(one, folder)
    except KeyboardInterrupt:
        told = one.length  # acknowledged by now
        assert one.trace.token_ids == reference(arm, TOKENS)[:told]
        course(one, folder)
    one.end()
    check(one, folder / "run.wb", reference(arm, TOKENS))
    assert one.ended and one.cursor == one.length
    return count[0]


def at_points(arm: str, scope: str, points: int, folder: Path, seed: int = 0) -> int:
    """That many courses, each with an interrupt at another instruction; returns how many were interrupted."""
    whole = once(arm, folder, SCOPES[scope], -1)
    chosen = random.Random(f"{seed} {arm} {scope}").sample(range(1, whole + 1), points)
    return sum(once(arm, folder, SCOPES[scope], at) <= at for at in chosen)


def by_signal(arm: str, points: int, folder: Path, seed: int = 0) -> int:
    """That many signals, each at a random time of a course; returns how many came before its end."""
    draw, met = random.Random(f"{seed} {arm}"), 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *seen: signal.raise_signal(signal.SIGINT))
    try:
        while met < points:
            for old in folder.iterdir():
                old.unlink()
            one = session(arm, TOKENS, out=folder / "run.wb")
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, 0.2))
            try:
                course(one, folder)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                met += 1
                assert one.trace.token_ids == reference(arm, TOKENS)[: one.length]
                course(one, folder)
            check(one, folder / "run.wb", reference(arm, TOKENS))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before)
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=300, help="of each kind, over all arms")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for place, arm in enumerate(ARMS):
        points = args.points // len(ARMS) + (place < args.points % len(ARMS))
        row: dict[str, Any] = {"arm": arm}
        with tempfile.TemporaryDirectory() as folder:
            for scope in SCOPES:
                row[f"inside {scope}"] = at_points(arm, scope, points, Path(folder), args.seed)
            row["by signal"] = by_signal(arm, points, Path(folder), args.seed)
        rows.append(row | {"lost or doubled": 0})
        print(rows[-1], flush=True)
    report("interrupts", f"interrupts in runs of {TOKENS} tokens on a toy model, which then went on", rows)


if __name__ == "__main__":
    main()
