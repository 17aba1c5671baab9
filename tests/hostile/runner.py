"""Corpora of hostile inputs: each is a strategy and a call that must return or raise a WorkbenchError, soon and small.

A module of this folder joins by exporting `CORPORA`: {name: (strategy, call)}. What breaks the promise is a fault:
another exception, a message of several lines, more than `SECONDS` of processor time (twice, so that first imports do
not count), or more than `MEGABYTES` above what the process held before.
"""

import importlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from workbench.errors import WorkbenchError, shown

__all__ = ["MEGABYTES", "SECONDS", "Report", "corpora", "run"]

SECONDS, MEGABYTES = 2.0, 300
HUNG = 20.0  # seconds of processor time after which a call is broken off
CHUNK = 250  # examples drawn at once, so that what hypothesis remembers stays small
WARM = 10  # examples after which a corpus has imported and loaded what it needs; their memory is the base


class Hung(BaseException):
    """Raised inside a call that does not come back."""


@dataclass
class Report:
    """What became of the examples of one corpus. faults: kind -> (count, one example that shows it)."""

    name: str
    examples: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    base_mb: float = 0.0
    peak_mb: float = 0.0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fault(self, kind: str, value: Any) -> None:
        count, example = self.faults.get(kind, (0, shown(value)))
        self.faults[kind] = (count + 1, min(example, shown(value), key=len))


def corpora() -> dict[str, tuple]:
    """All corpora of this folder as `module.name`."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem.startswith(("_", "test_")) or file.stem == "runner":
            continue
        module = importlib.import_module(f"tests.hostile.{file.stem}")
        found |= {f"{file.stem}.{name}": pair for name, pair in getattr(module, "CORPORA", {}).items()}
    return found


def run(name: str, pair: tuple, examples: int, start: int | None = None) -> Report:
    """Try `examples` values of a corpus. start: number of the random sequence; None: always the same one."""
    strategy, call = pair
    report, done = Report(name), 0
    while done < examples:
        count = min(CHUNK, examples - done)
        how = settings(
            max_examples=count, derandomize=start is None, database=None, deadline=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip

        def one(value: Any) -> None:
            _attempt(report, call, value)

        test = how(given(strategy)(one))
        (test if start is None else seed(start + done)(test))()
        done += count
    return report


def _attempt(report: Report, call: Callable[[Any], None], value: Any) -> None:
    report.examples += 1
    if report.examples <= WARM:
        report.base_mb = _peak_mb(reset=True)
    seconds = _timed(report, call, value)
    if seconds > SECONDS and (seconds := _timed(report, call, value)) > SECONDS:
        report.fault(f"slow: more than {SECONDS:g} s", value)
    report.slowest_s = max(report.slowest_s, seconds)
    grown = _peak_mb() - report.base_mb if report.examples > WARM else 0.0
    if grown > MEGABYTES >= report.peak_mb:
        report.fault(f"large: more than {MEGABYTES} MB", value)
    report.peak_mb = max(report.peak_mb, grown)


def _timed(report: Report, call: Callable[[Any], None], value: Any) -> float:
    """Seconds of processor time that a call takes."""
    start = time.process_time()
    try:
        with _limited():
            call(value)
    except WorkbenchError as error:
        report.refused += 1
        if len(str(error).splitlines()) > 1 or not str(error):
            report.fault(f"message of another number of lines than one: {shown(str(error))[:80]}", value)
    except Hung:
        report.fault("hung", value)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "/workbench/" in f.filename), frames[-1])
        report.fault(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}", value)
    return time.process_time() - start


@contextmanager
def _limited() -> Iterator[None]:
    def end(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, HUNG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak_mb(reset: bool = False) -> float:
    """The most memory this process held (since the last reset, where the system can forget); 0 where it cannot say."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return 0.0
    if reset:
        with suppress(OSError):
            forget.write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
