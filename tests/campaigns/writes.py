"""Writes that fail: each one of a run by turns, and a disk that is full at every byte of a line.

`python -m tests.campaigns.writes [--arms plain tree,\\ full …]` prints a table and writes
`benchmarks/results/trust-writes.json`.
"""

import argparse
import errno
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from tests.campaigns.writing import ARMS, check, reference, report, session
from workbench.errors import BadInput

__all__ = ["every_byte", "every_write", "limited"]

ROUNDS = 30
_write = os.write


def full(fd: int, content: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(fd: int, content: bytes) -> int:
    _write(fd, content[: len(content) // 2])
    return full(fd, content)


def no_memory(fd: int, content: bytes) -> int:
    raise MemoryError


def interrupted(fd: int, content: bytes) -> int:
    raise KeyboardInterrupt


def interrupted_behind(fd: int, content: bytes) -> int:
    _write(fd, content)
    raise KeyboardInterrupt


FAULTS = {"full": full, "full half-way": half, "memory": no_memory, "Ctrl-C before": interrupted,
          "Ctrl-C behind": interrupted_behind}  # fmt: skip


@contextmanager
def failing(at: int, fault: Callable[[int, bytes], int]) -> Iterator[list[int]]:
    """While open, the `at`-th write to a file fails; gives a list with an entry per write."""
    seen: list[int] = []

    def write(fd: int, content: bytes) -> int:
        seen.append(len(content))
        return fault(fd, content) if len(seen) == at + 1 else _write(fd, content)

    with mock.patch("workbench.trace.files.os.write", write):
        yield seen


def go_on(one, folder: Path) -> int:
    """Run to the end, whatever comes in between; returns how many errors came, each in one line."""
    errors = 0
    while not one.ended:
        before = one.length
        try:
            one.run()
        except (BadInput, MemoryError, KeyboardInterrupt) as error:
            errors += 1
            assert "\n" not in str(error) and one.length >= before
            lines = (folder / "run.wb").read_bytes()
            assert lines.endswith(b"\n") or isinstance(error, KeyboardInterrupt)
    return errors


def every_write(arm: str, folder: Path, fault: str, stride: int = 1) -> int:
    """Each write of a run fails once, in a run of its own; returns how many writes a run has."""
    at = 0
    while True:
        path = folder / "run.wb"
        path.unlink(missing_ok=True)
        with failing(at, FAULTS[fault]) as seen:
            try:
                one = session(arm, ROUNDS, out=path)
            except (BadInput, MemoryError, KeyboardInterrupt):
                assert list(folder.iterdir()) == [], "a run that never began left something"
                one = session(arm, ROUNDS, out=path)
            errors = go_on(one, folder)
        check(one, path, reference(arm, ROUNDS))
        if len(seen) <= at:
            return len(seen)
        assert errors == (at > 0), "one error, and one only"
        at += stride


def every_byte(arm: str, folder: Path, stride: int = 0) -> int:
    """The disk is full at every byte of the fifth round's lines; returns how many bytes were tried.

    stride: 0 tries some 1000 places where they are long, as at level `full`.
    """
    path, tried, room = folder / "run.wb", 0, 0
    one = session(arm, ROUNDS, out=path)
    one.run(rounds=3)
    size = path.stat().st_size
    one.run(rounds=1)
    stride = stride or 1 + (path.stat().st_size - size) // 1000
    before = path.read_bytes()

    def write(fd: int, content: bytes) -> int:
        nonlocal left
        if not left:
            return full(fd, content)
        left -= (written := _write(fd, content[:left]))
        return written

    with mock.patch("workbench.trace.files.os.write", write):
        while path.read_bytes() == before:
            left = room
            try:
                one.run(rounds=1)
            except BadInput as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
                tried, room = tried + 1, room + stride
    kept = path.read_bytes()
    assert kept.startswith(before) and kept.endswith(b"\n")
    assert tried > 0.8 * (len(kept) - len(before)) / stride  # times differ in length, from one try to the next
    one.run()
    check(one, path, reference(arm, ROUNDS))
    return tried


def limited(arm: str, folder: Path) -> int:
    """The same by the kernel: a limit on the size of files that is met in every round; returns how often it was."""
    import resource

    path, met = folder / "run.wb", 0
    one = session(arm, ROUNDS, out=path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        while not one.ended:
            room = 1 + 37 * met % 600
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
            try:
                one.run(rounds=1)
            except BadInput as error:
                assert "File too large" in str(error)
                met += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert path.read_bytes().endswith(b"\n")
            one.run(rounds=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    check(one, path, reference(arm, ROUNDS))
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    rows = []
    for arm in parser.parse_args().arms:
        ways = {fault: partial(every_write, fault=fault) for fault in FAULTS}
        ways |= {"full at every byte": every_byte, "limit of the kernel": limited}
        row = {"arm": arm}
        for name, tried in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                row[name] = tried(arm, Path(folder))
        rows.append(row | {"lost": 0, "unreadable": 0})
        print(rows[-1], flush=True)
    report("writes", f"writes that failed, in runs of {ROUNDS} tokens on a toy model, by how they failed", rows)


if __name__ == "__main__":
    main()
