"""The numeric tests and all notebooks, as other CPUs would compute them.

    python -m tests.campaigns.numerics [--short] [--fresh] [--arm NAME ...] [--out FILE]

Every part (a file of tests, or a notebook) runs under every arm: kernels of other instruction sets, other numbers of
threads, and products rounded another way (`tests/another_cpu.py`). Each result is written as it comes; what passed
before is not run again, unless `--fresh`. The last line says whether all passed.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import torch

from workbench.provenance import versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "trust-numerics.json"
FOLDERS = ("cache", "bits", "engine", "decoders", "speculation", "experiments", "session", "pretrained", "kernels")

CPUS = {
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "compatible": {"MKL_CBWR": "COMPATIBLE"},
    "another": {"ANOTHER_CPU_SEED": "1"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "own": {},
    "all avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "another 2": {"ANOTHER_CPU_SEED": "2"},
}  # those most unlike each other first
ONE_THREAD = ("compatible", "another", "all avx2", "another 2")
ARMS = {f"{name}, 1": {**cpu, "OMP_NUM_THREADS": "1"} for name, cpu in CPUS.items()}
ARMS |= {f"{name}, 2": {**cpu, "OMP_NUM_THREADS": "2"} for name, cpu in CPUS.items() if name not in ONE_THREAD}

SHORT_ARMS = ("default, 1", "compatible, 1", "another, 1")
SHORT = (
    "tests/cache/test_pages.py",
    "tests/cache/test_invariant.py",
    "tests/engine/test_attention.py",
    "tests/engine/test_fusion.py",
    "notebooks/05-bit-allocation.ipynb",
)
SEEN = "rejected or lie or stack[h2o+kivi4] or hundredth or test_attention or test_fusion or ipynb"


def parts(short: bool) -> dict[str, list[str]]:
    """Name -> what pytest is given."""
    if short:
        return {"short": [*SHORT, "-k", SEEN]}
    files = [*sorted((ROOT / "notebooks").glob("*.ipynb"))]
    for folder in FOLDERS:
        files += sorted((ROOT / "tests" / folder).glob("test_*.py"))
    return {file.name: [str(file.relative_to(ROOT))] for file in files}


@contextmanager
def kernel_folder() -> Iterator[Path]:
    """A folder whose IPython profile rounds products another way."""
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-another-cpu.py").write_text("from tests.another_cpu import install\n\ninstall()\n")
        yield Path(folder)


def run(arm: dict[str, str], given: list[str], folder: Path) -> dict:
    """Run pytest on a part under an arm -> passed, skipped, failed, seconds, the names of failures."""
    report, plugin = folder / "report.xml", []
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **arm, "PYTHONPATH": found}
    if "ANOTHER_CPU_SEED" in arm:
        plugin = ["-p", "tests.another_cpu"]
        environment["IPYTHONDIR"] = str(folder)  # for the kernels of notebooks
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *plugin, *given]
    report.unlink(missing_ok=True)
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - started, 1)
    if not report.exists():
        said = (done.stdout + done.stderr)[-500:]
        return {"passed": 0, "skipped": 0, "failed": 1, "seconds": seconds, "failures": [said]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(wrong) - skipped,
        "skipped": skipped,
        "failed": len(wrong) or int(not cases),
        "seconds": seconds,
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in wrong],
    }


def conditions() -> dict:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{model}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def table(results: dict[str, dict[str, dict]]) -> str:
    """One line per arm that ran: parts, tests passed and failed, seconds; below them what failed."""
    lines = [f"{'arm':16} parts  passed  skipped  failed  seconds"]
    for arm, found in results.items():
        sums = [sum(one[name] for one in found.values()) for name in ("passed", "skipped", "failed", "seconds")]
        lines.append(f"{arm:16} {len(found):5}  {sums[0]:6}  {sums[1]:7}  {sums[2]:6}  {sums[3]:7.0f}")
    for arm, found in results.items():
        lines += [f"FAILED under {arm}: {one}" for part in found.values() for one in part["failures"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few tests, few arms, nothing written")
    parser.add_argument("--fresh", action="store_true", help="forget what is known already")
    parser.add_argument("--arm", action="append", choices=ARMS, help="only this one; may be given several times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args(arguments)
    arms = options.arm or (SHORT_ARMS if options.short else tuple(ARMS))
    keep = not (options.short or options.fresh) and options.out.exists()
    known = json.loads(options.out.read_text())["arms"] if keep else {}
    with kernel_folder() as folder:
        for arm, (part, given) in itertools.product(arms, parts(options.short).items()):
            if known.setdefault(arm, {}).get(part, {"failed": 1})["failed"]:
                known[arm][part] = found = run(ARMS[arm], given, folder)
                print(
                    f"{arm}: {part}: {found['passed']} passed, {found['failed']} failed, {found['seconds']} s",
                    flush=True,
                )
                if not options.short:
                    options.out.write_text(json.dumps({"conditions": conditions(), "arms": known}, indent=1) + "\n")
    print(table(known))
    return int(any(part["failed"] for found in known.values() for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
