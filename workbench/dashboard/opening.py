"""Opening a file that somebody handed in: first in a process that may be killed, so that no file can hold the app."""

import json
import subprocess
import sys
from pathlib import Path

from workbench import web
from workbench.errors import BadTrace, WorkbenchError
from workbench.report.headline import headline
from workbench.trace import Trace
from workbench.trace.schema import TABLES

MAX_TRACE = 16_000_000  # bytes of a file that may be opened, and of the trace in a capsule
CPU_S, WALL_S = 10, 60  # seconds of the processor, and by the clock, that a file may take
MEMORY = 2 << 30  # bytes of address space
FAILED, REFUSED = 1, 3  # exit status of a script that raised, and where the line on stderr says why
TRY = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import workbench.dashboard.opening as opening; "
    "opening.limit(); sys.exit(opening.attempt(sys.argv[2]))"
)
DAMAGED = "is damaged: what it holds cannot be shown"
HEAVY = "takes more time or memory to read than a file of its size may; it is damaged, or made to do harm"


def open_file(path: Path) -> Trace:
    """The trace in a file. Raises BadTrace where it is none, or could not be shown within the limits."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", TRY, json.dumps(sys.path), str(path)],
            capture_output=True, text=True, timeout=WALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadTrace(f"{path.name} {HEAVY}") from None
    if tried.returncode == REFUSED:
        raise BadTrace(tried.stderr.strip().replace(str(path), path.name))
    if tried.returncode:
        raise BadTrace(f"{path.name} {DAMAGED if tried.returncode == FAILED else HEAVY}")
    return Trace.load(path, MAX_TRACE)


def attempt(path: str) -> int:
    """In the process that may be killed: make of the file what the page shows first; returns the exit status."""
    try:
        trace = Trace.load(path, MAX_TRACE)
        for name in TABLES:
            getattr(trace, name)
        headline(trace)
        web.to_json(web.payload(trace))
    except WorkbenchError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return 0


def limit() -> None:
    """Bound what this process may take, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the clock alone
        return
    for what, most in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
