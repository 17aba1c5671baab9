"""Unit tests: run a text as Python in a process of its own, within limits, and count which tests pass."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from workbench.control.scorers.base import Scorer, text_of
from workbench.declare import register, setting
from workbench.engine.text import decode
from workbench.errors import BadInput

MOST = PASSED = 100  # tests; an exit status of that many and n says that n of them passed

CHILD = """
import json, os, resource, sys
told = json.load(sys.stdin)
for name, most in told["limits"].items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))

def watch(event, given, here=os.getcwd() + os.sep, acts=tuple(told["acts"]), modules=frozenset(told["modules"])):
    opens = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
    if (event.startswith(acts) or (event == "import" and given[0] in modules)
            or (opens and not os.path.abspath(str(given[0])).startswith(here))):
        raise PermissionError(event)

sys.addaudithook(watch)
names, passed = {"__name__": "tested"}, 0
try:
    exec(compile(told["code"], "text", "exec"), names)
    for test in told["tests"]:
        try:
            exec(compile(test, "test", "exec"), names)
            passed += 1
        except Exception:
            pass
except BaseException:
    pass
os._exit(told["passed"] + passed)
"""
ACTS = (  # that Python reports before it does them
    "socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "shutil.", "pty.",
    "signal.", "resource.", "ctypes.",
)  # fmt: skip
LIMITS = {"FSIZE": 2**24, "NOFILE": 32, "NPROC": 0, "CORE": 0}  # beside those on time and memory
MODULES = ("_posixsubprocess", "ctypes", "_ctypes", "multiprocessing", "_multiprocessing")


@register("scorer", "unit_tests")
@dataclass(frozen=True)
class UnitTests(Scorer):
    """The share of `tests` that pass behind a hypothesis's text, which is run as Python code, prompt and all.

    Each text runs in a process and a directory of its own, with limits on time, memory, files and processes; other
    processes, the network, and writing elsewhere are refused. This holds off accidents, such as endless loops; it is no
    wall against a text that means harm or that feigns to pass, so only the owner of an app may use it. A text that does
    not run, or not in time, has 0. In `beam` this runs at every token; it is meant for `best_of`.

    Source: the execution-based evaluation of "Evaluating Large Language Models Trained on Code"
    (https://arxiv.org/abs/2107.03374; https://github.com/openai/human-eval). Departures: the share of tests in place of
    all or nothing; limits of the operating system.
    """

    trust = "owner"
    tests: str = setting("", trust="owner", help="Python statements, each line a test that passes unless it raises")
    timeout: float = setting(5.0, gt=0, le=600, unit="s", help="time that a text has")
    memory: int = setting(512, ge=64, le=2**20, unit="MiB", help="memory that a text has")
    prompt: bool = setting(True, help="the code begins with the prompt")

    def check(self, lm: Any, settings: Any) -> None:
        if find_spec("resource") is None:
            raise BadInput("unit_tests: expected a system that limits processes (Linux, macOS); this one does not")
        if not 0 < len(self._lines) <= MOST:
            raise BadInput(f"unit_tests: expected 1 to {MOST} tests, one a line, got {len(self._lines)}")

    @property
    def _lines(self) -> list[str]:
        return [line for line in self.tests.splitlines() if line.strip()]

    def score(self, r: Any, hypotheses: Sequence[Any]) -> list[float]:
        prompt, tokenizer = r.state.tokens[: r.state.prompt_length], r.state.runners["target"].model.tokenizer
        before = decode(tokenizer, prompt) if self.prompt else ""
        return [self.value(before + text_of(r, one)) for one in hypotheses]

    def value(self, code: str) -> float:
        """The share of the tests that pass behind this code."""
        limits = {"CPU": math.ceil(self.timeout), "AS": self.memory * 2**20} | LIMITS
        told = {
            "limits": limits,
            "acts": ACTS,
            "modules": MODULES,
            "passed": PASSED,
            "code": code,
            "tests": self._lines,
        }
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", CHILD], cwd=folder, env={}, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                with suppress(subprocess.TimeoutExpired):
                    child.communicate(json.dumps(told).encode(), self.timeout)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.communicate()
        return max(0, child.returncode - PASSED) / len(self._lines)
