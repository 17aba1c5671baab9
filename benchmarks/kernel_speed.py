"""Speed of the kernels beside what the device can do at most and beside the strongest baseline, all in one run.

    python benchmarks/kernel_speed.py [--quick] [--only NAME] [--out benchmarks/results/kernels.json] [--no-tests]

The kernel tests run first, natively on a GPU and on a CPU too; where one fails no figure is printed. --no-tests skips
them. Then each case is timed on the device by CUDA-graph replay, with inputs out of the L2 cache: median, 20th and 80th
percentile. Beside it stand its baselines and its floor, max(bytes / copy bandwidth, operations / matrix product rate),
measured in the same run. Without a CUDA device no speed is measured: the table shows bytes, operations and floors.
Conditions and rows go to --out.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import device as devices
from benchmarks.cases import Case, baselines, cases
from benchmarks.runs import write

ROOT = Path(__file__).parents[1]
TESTS = f"{shlex.quote(sys.executable)} -m pytest tests/kernels -q"
NO_SPEED = "no speed was measured: no CUDA device"
NO_TESTS = "WARNING: not run (--no-tests), and a fast kernel may be a wrong one"


def tests_pass(command: str) -> bool:
    """Run the kernel tests; prints the end of what they said where they fail."""
    print("the kernel tests run first; --no-tests skips them", flush=True)
    done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
        print(f"the kernel tests failed ({command}): no figures are given for kernels that may be wrong")
    return done.returncode == 0


def floor(case: Case, rates: devices.Rates) -> dict[str, Any]:
    """What the case must do, and the time that takes at least."""
    moved, flops = case.work
    bound = "memory" if moved / rates.bytes_per_s >= flops / rates.flops_per_s else "compute"
    row = {"operation": case.operation, "shape": case.label, "dtype": str(case.dtype).removeprefix("torch.")}
    return row | {"bytes": moved, "flops": flops, "floor_us": rates.floor_us(moved, flops), "bound": bound}


def timed(case: Case, row: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The row with the kernel's time, the times of its baselines (or why they have none), and the ratios."""
    torch.compiler.reset()  # every shape is compiled for itself
    call = case.prepare(str(device))
    row = row | devices.measure(lambda: call.run("triton"), device)._asdict()
    others: dict[str, Any] = {}
    for name, run in baselines(case, call).items():
        try:
            others[name] = devices.measure(run, device)._asdict()
        except Exception as error:  # a baseline that cannot take the case is no baseline of it
            others[name] = {"refused": f"{type(error).__name__}: {error}".splitlines()[0]}
    times = {name: found["median_us"] for name, found in others.items() if "median_us" in found}
    best = min(times, key=times.get) if times else None
    speedup = times[best] / row["median_us"] if best else None
    row |= {"times_floor": row["median_us"] / row["floor_us"], "best_baseline": best, "baseline_us": times.get(best)}
    return row | {"speedup": speedup, "baselines": others}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{row['operation']:19} {row['shape']:42} {row['bytes'] / 2**20:9.3f} {row['flops'] / 1e9:9.3f}"
    text += f" {row['floor_us']:10.2f} {row['bound']:7}"
    if "median_us" in row:
        text += f" {row['median_us']:9.2f} {row['p20_us']:9.2f} {row['p80_us']:9.2f} {row['how']:5}"
        text += f" {row['times_floor']:7.2f}"
        best = row["best_baseline"]
        text += f" {row['speedup']:7.2f} {best} ({row['baselines'][best]['how']})" if best else "       - none"
    return text


def header(measured: bool) -> str:
    text = f"{'operation':19} {'shape':42} {'MiB':>9} {'GFLOP':>9} {'floor µs':>10} {'bound':7}"
    if measured:
        text += f" {'median µs':>9} {'20 %':>9} {'80 %':>9} {'how':5} {'× floor':>7} {'speedup':>7} over"
    return text


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where the kernel tests fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape of each operation")
    parser.add_argument("--only", metavar="NAME", default="", help="operations whose name contains this")
    parser.add_argument("--out", type=Path, help="write conditions and rows here, as JSON")
    tests = parser.add_mutually_exclusive_group()
    tests.add_argument("--no-tests", action="store_true", help="do not run the kernel tests first")
    tests.add_argument("--tests", metavar="COMMAND", help="what to run as tests")
    options = parser.parse_args(argv)
    measured = torch.cuda.is_available()
    if measured and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 would time the interpreter; unset it")
    if not options.no_tests and not tests_pass(options.tests or TESTS + (" -m gpu" if measured else "")):
        return 1
    tested = NO_TESTS if options.no_tests else "passed"
    print(f"kernel tests: {tested}")
    device = torch.device("cuda" if measured else "cpu")
    rates, told = devices.rates(device), devices.conditions(device)
    print(f"{told['device']}; {', '.join(f'{name} {version}' for name, version in told['versions'].items())}")
    print(f"copy {rates.bytes_per_s / 1e9:.1f} GB/s, {rates.dtype} products {rates.flops_per_s / 1e12:.2f} TFLOP/s")
    if measured:
        one = torch.empty(1, device=device)
        told["smallest_us"] = devices.measure(one.zero_, device).median_us
        print(f"the smallest call, one element set to zero, takes {told['smallest_us']:.2f} µs")
    else:
        print(NO_SPEED)
    print(header(measured))
    rows = []
    for case in cases(options.quick):
        if options.only in case.operation:
            row = floor(case, rates)
            rows.append(timed(case, row, device) if measured else row)
            print(line(rows[-1]), flush=True)
    if options.out:
        told |= rates._asdict() | {"speed": "measured" if measured else NO_SPEED, "tests": tested}
        write(options.out, told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
