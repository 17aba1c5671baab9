"""What is installed, what runs where, and whether every kernel gives what its reference defines: `workbench doctor`."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import pandas as pd
import torch
from packaging.requirements import Requirement

from workbench import declare
from workbench.errors import BadInput, Unsupported
from workbench.models.native import compiled
from workbench_kernels.dispatch import VARIABLE, decide
from workbench_kernels.selftest import OPERATIONS

TIMEOUT_S = 300


def doctor(quick: bool = False) -> dict[str, Any]:
    """Versions, devices, what is missing, and a row for every operation.

    quick: leave out the self-tests, which take some seconds in a process of their own (under Triton's interpreter where
    there is no GPU, so on one tiny shape each).

    Returns a dict that JSON can hold:
    python, packages: versions; a package has `installed` (None where it is missing), `wanted` and `fits`.
    devices: name and memory of each.
    advice: what is missing or odd and what to do, a line each.
    operations: operation, implementation (`triton`, `torch` or `sdpa`) that it takes here and reason; selftest (`pass`,
        `FAIL`, `skipped` or `not run`), where ("cuda", "cpu" or "interpreter"), error, tolerance and message. An error
        is |got - want| / max(1, |want|).
    passed: no self-test failed.

    Raises BadInput where WORKBENCH_KERNELS in the environment names no implementation.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packages = installed()
    operations = [_choice(name, device) | found for name, found in _selftests(device, quick).items()]
    return {
        "python": platform.python_version(),
        "packages": packages,
        "devices": devices(),
        "advice": advice(packages),
        "operations": operations,
        "passed": all(row["selftest"] != "FAIL" for row in operations),
    }


def installed() -> list[dict[str, Any]]:
    """What the project asks for on this system, beside what is there."""
    try:
        needed = [Requirement(line) for line in requires("decoding-workbench") or ()]
    except PackageNotFoundError:  # run from its source, not installed
        needed = [Requirement(name) for name in ("torch", "transformers", "triton")]
    rows = []
    for one in needed:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            try:
                there = version(one.name)
            except PackageNotFoundError:
                there = None
            fits = there is not None and one.specifier.contains(there, prereleases=True)
            rows.append({"package": one.name, "installed": there, "wanted": str(one.specifier), "fits": fits})
    return rows


def devices() -> list[dict[str, Any]]:
    """The CPU, and every CUDA device that PyTorch sees."""
    found = [{"device": "cpu", "name": f"{torch.get_num_threads()} threads", "memory_gib": None}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        name = f"{facts.name}, sm{facts.major}{facts.minor}, {facts.multi_processor_count} multiprocessors"
        found.append({"device": f"cuda:{index}", "name": name, "memory_gib": round(facts.total_memory / 2**30, 1)})
    return found


def advice(packages: list[dict[str, Any]]) -> list[str]:
    """What is missing or odd, and what to do about it."""
    lines = []
    for row in packages:
        if not row["fits"]:
            state = "is not installed" if row["installed"] is None else f"is {row['installed']}"
            wanted = row["package"] + row["wanted"]
            lines.append(f"{row['package']} {state}: python -m pip install '{wanted}'")
    lines += [f"the plug-in {name!r} is left out: {reason}" for name, reason in declare.broken().items()]
    if importlib.util.find_spec("triton") is None:
        lines.append("Triton is not installed (it has wheels for Linux only): the torch references run in its place")
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            lines.append("this PyTorch is built without CUDA: models run on the CPU; for a GPU install a CUDA build")
        else:
            lines.append(f"PyTorch is built for CUDA {torch.version.cuda} and sees no device: look at nvidia-smi")
    elif not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        lines.append("Triton compiles its launchers with a C compiler and finds none: install gcc, or name one in CC")
    try:
        compiled()
    except Unsupported as error:
        lines.append(f"models run on the CPU without their compiled body: {error}")
    if os.environ.get(VARIABLE):
        lines.append(f"{VARIABLE}={os.environ[VARIABLE]} decides which implementation runs; unset it for the usual one")
    return lines


def report(found: dict[str, Any]) -> str:
    """What `doctor` found, as text."""
    packages = pd.DataFrame(found["packages"]).drop(columns="fits").fillna("missing")
    rows = pd.DataFrame(found["operations"])
    rows["where"] = rows["where"].fillna("")
    for name in ("error", "tolerance"):
        values = [row[name] for row in found["operations"]]
        rows[name] = ["" if value is None else f"{value:.1e}" if value else "0" for value in values]
    told = rows.pop("message")
    lines = [f"Python {found['python']}", "", packages.to_string(index=False), "", "Devices"]
    for row in found["devices"]:
        memory = f", {row['memory_gib']} GiB" if row["memory_gib"] else ""
        lines.append(f"  {row['device']}: {row['name']}{memory}")
    lines += ["", rows.to_string(index=False, na_rep="")]
    lines += [f"  {name}: {text}" for name, text in zip(rows["operation"], told, strict=True) if text]
    lines += ["", *(found["advice"] or ["Nothing is missing."])]
    count = rows["selftest"].value_counts()
    return "\n".join([*lines, "self-tests: " + ", ".join(f"{number} {name}" for name, number in count.items())])


def _choice(name: str, device: str) -> dict[str, str]:
    if name == "attention":
        implementation, reason = "sdpa", "one run of keys and values is one call of PyTorch's attention"
    else:
        try:
            implementation, reason = decide(device, lambda: None)
        except ValueError as error:  # the environment asks for what does not exist
            raise BadInput(str(error)) from None
    return {"operation": name, "implementation": implementation, "reason": reason}


def _selftests(device: str, quick: bool) -> dict[str, dict[str, Any]]:
    """By operation. They run in a process of their own, since Triton reads TRITON_INTERPRET when it is imported."""
    empty = {"selftest": "not run", "where": None, "error": None, "tolerance": None, "message": ""}
    if quick:
        return dict.fromkeys(OPERATIONS, empty)
    if importlib.util.find_spec("triton") is None:
        return dict.fromkeys(OPERATIONS, empty | {"selftest": "skipped"})
    command = [sys.executable, "-m", "workbench_kernels.selftest", device]
    environment = os.environ | {"TRITON_INTERPRET": "0" if device == "cuda" else "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        out, end = done.stdout, f"the process ended with code {done.returncode}: {said[-1]}"
    except subprocess.TimeoutExpired as late:
        out, end = (late.stdout or b"").decode(), f"no answer within {TIMEOUT_S} s"
    kernel = "cuda" if device == "cuda" else "interpreter"
    rows = {row["operation"]: row for line in out.splitlines() if (row := _row(line))}
    found = {}
    for name in OPERATIONS:
        row = rows.get(name, {"passed": False, "message": end})
        figures = {column: row.get(column, empty[column]) for column in ("error", "tolerance", "message")}
        where = device if name == "attention" else kernel
        found[name] = {"selftest": "pass" if row["passed"] else "FAIL", "where": where} | figures
    return found


def _row(line: str) -> dict[str, Any] | None:
    """A row of the self-tests; None for what a library printed between them, or a line cut short."""
    if not re.match(r'\{"operation": ', line):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
