"""The first eight minutes on a GPU: its ceilings, the tests, what rounds on the device are worth, kernels, profiles.

    python benchmarks/device_check.py [--out benchmarks/results/device] [--only PHASE] [--size 8b]

Each phase is a process with a limit of its own, and writes OUT/PHASE.json row by row: what fails or takes too long
keeps its rows, and the next phase begins. Times are device times of replayed CUDA graphs unless a row says otherwise.
Predictions, from compiled code, stand beside what was measured. Without a GPU all of it runs once in small, to see that
it would, and no time is written down.
"""

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from benchmarks import cases, device, end_to_end, runs
from benchmarks.device import clock
from workbench.device.forward import DeviceRound, DeviceTree
from workbench.device.graph import Replayed
from workbench.device.model import DeviceModel
from workbench.device.round import VARIABLE, PackedDistribution
from workbench.device.sampling import DeviceSampling
from workbench.device.store import LiveRows, StaticRun
from workbench.engine.sampling import Sampling
from workbench.models.adapter import wrap

ROOT = Path(__file__).parents[1]
LIMITS = {"ceilings": 30, "tests": 130, "model": 180, "kernels": 130}  # seconds: of phases, in their order
WORTH = 0.15  # share of a captured forward's time that the rest of the round on the device must save to stay
KERNELS = {  # operation and label of a case -> predicted microseconds on an H200
    ("attend_live", "keys=8192 rows=1"): 16, ("attend_live", "keys=32000 rows=1"): 50,
    ("attend_live", "keys=32000 rows=8"): 68, ("attend_pages", "R=1 n=8192 kind=16"): 20,
    ("attend_pages", "R=1 n=32768 kind=16"): 56, ("attend_pages", "R=1 n=32768 kind=4"): 54,
    ("attend_pages", "R=1 n=32768 kind=mixed"): None, ("page_mass", "R=1 n=32768 kind=16"): 36,
    ("attend_staged", "rows=64"): None, ("attend_prefix", "keys=8192 sequences=16 rows=1"): None,
    ("statistics", "vocab=131072 rows=1"): 10, ("statistics", "vocab=131072 rows=16"): None,
    ("sample", "vocab=131072 rows=1 plain"): None, ("sample", "vocab=131072 rows=1 top-k top-p"): 130,
    ("sample", "vocab=131072 rows=16 plain"): None, ("verify", "nodes=64 vocab=131072"): 215,
}  # fmt: skip
Row = dict[str, Any]


def timed(run: Callable[[], Any], where: torch.device, repeats: int = 30) -> Row:
    """Of a call on a GPU; on a CPU it is called, and nothing is told."""
    if where.type == "cuda":
        return device.measure(run, where, repeats)._asdict()
    run()
    return {}


# -- ceilings ----------------------------------------------------------------------------------------------------------


def ceilings(where: torch.device, given) -> Iterator[Row]:
    """What no call can be faster than: bandwidth, products, and what a launch costs inside a graph."""
    gpu = where.type == "cuda"
    rates = device.rates(where)
    yield {"name": "copy", "GB_per_s": rates.bytes_per_s / 1e9 if gpu else None, "predicted": 4300}
    yield {"name": f"products, {rates.dtype}", "TFLOP_per_s": rates.flops_per_s / 1e12 if gpu else None}
    many = torch.randn(2**29 if gpu else 2**16, device=where)
    found = timed(many.sum, where)
    yield {"name": "reading alone", "GB_per_s": many.nbytes / found["median_us"] / 1e3 if gpu else None} | found
    one = torch.empty(1, device=where)
    yield {"name": "the smallest node"} | timed(one.zero_, where)
    chain = timed(lambda: [one.add_(1) for _ in range(100)], where)
    yield {"name": "a node of a chain", "us": chain["median_us"] / 100 if gpu else None}


# -- tests -------------------------------------------------------------------------------------------------------------


def tests(where: torch.device, given) -> Iterator[Row]:
    """The tests that need a GPU, kernels first; a race detector on what writes and reads memory of its own."""
    gpu = where.type == "cuda"
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--maxfail=5", "--tb=short"]
    spread = ["-n", "8"] if gpu and importlib.util.find_spec("xdist") else []
    for part, limit in (("tests/kernels", 60), ("tests/engine", 35)):
        row = _told([*pytest, *spread, *([] if gpu else ["--collect-only"]), part], limit)
        yield {"name": part} | row | ({} if gpu else {"seconds": None})
    if not shutil.which("compute-sanitizer"):
        yield {"name": "races", "told": "compute-sanitizer is not here"}
        return
    raced = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", *pytest, "-x", "-k", "top"]
    yield {"name": "races"} | _told([*raced, "tests/kernels/test_sampling_kernel.py"], 15)


def _told(command: list[str], limit: float) -> Row:
    """Exit status of a command, and the end of what it said; status None where it took too long."""
    start = time.perf_counter()
    try:
        status, said = _run(command, limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except subprocess.TimeoutExpired:
        status, said = None, "it took too long"
    lines = said.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    end = lines[-40:] if status else []
    return {"status": status, "told": lines[-1] if lines else "", "failed": failed, "end": end,
            "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip


def _run(command: list[str], limit: float, **pipes: Any) -> tuple[int, str | None]:
    """Exit status of a command, and what it said where that is piped. Past its limit it is ended with all that it has
    started, and TimeoutExpired raised: nothing of it may run beside what is measured next."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said


# -- a whole model -----------------------------------------------------------------------------------------------------


class CapturedForward:
    """The plain forward of one row as a graph of its own, logits left on the device: what a round without sampling,
    verification and record on the device would be."""

    def __init__(self, model: DeviceModel, run: StaticRun):
        self.model, self.rows = model, LiveRows(run, torch.ones(1, 1, dtype=torch.bool), 0)
        self.upload = torch.zeros(2, dtype=torch.int64, pin_memory=model.device.type == "cuda")
        self.inputs = torch.zeros(2, dtype=torch.int64, device=model.device)  # position and token
        self.replayed = Replayed(self._compute, model.device)

    @torch.inference_mode()
    def _compute(self) -> torch.Tensor:
        return self.model.forward(self.inputs[1:], self.inputs[:1], self.rows.at(self.inputs[:1]))

    def __call__(self, position: int, token: int) -> torch.Tensor:
        self.upload[0], self.upload[1] = position, token
        self.inputs.copy_(self.upload, non_blocking=True)
        return self.replayed()


def model(where: torch.device, given) -> Iterator[Row]:
    """First what rounds on the device are worth beside a captured forward; then whole steps, the device's share of
    them, stock `generate`, and where the time of a replay goes."""
    gpu = where.type == "cuda"
    size = given.size or ("8b" if gpu else "tiny")
    start = clock(where)
    stock = end_to_end.build(size, where.type)
    bytes_ = end_to_end.streamed_bytes(stock)
    floor = 1000 * bytes_ / device.copy_bandwidth(where) if gpu else None
    yield {"name": "weights", "size": size, "GB": bytes_ / 1e9, "floor_ms": floor,
           "built_s": clock(where) - start if gpu else None}  # fmt: skip
    lm, prompt, tokens = wrap(stock), list(range(1, 129)), 64 if gpu else 2
    yield {"name": "fused"} | DeviceModel.of(lm).fused
    os.environ[VARIABLE] = "device"
    for name, sampling in (("greedy", Sampling()), ("top-p", Sampling(temperature=0.8, top_p=0.95))):
        for level in ("off", "default"):
            yield {"name": f"question, {name}, {level}"} | question(lm, prompt, sampling, level != "off", tokens)
    for level in ("off", "default"):
        ms, how = end_to_end.workbench_ms(lm, prompt, tokens, level)
        yield {"name": f"step, {level}", "how": how, "ms": ms if gpu else None, "predicted": 5.7, "floor_ms": floor}
    ms = end_to_end.generate_ms(stock, prompt, tokens // 2)
    yield {"name": "model.generate", "ms": ms if gpu else None, "floor_ms": floor}
    forward, _ = arms(lm, prompt, Sampling(), False)
    forward(200, 5)
    yield {"name": "replay", "captured": forward.replayed.captured} | (replay_ms(forward.replayed) if gpu else {})
    yield {"name": "kernels of a replay"} | profile(partial(forward, 200, 5), gpu)


def arms(lm, prompt: list[int], sampling: Sampling, recorded: bool) -> tuple[CapturedForward, DeviceRound]:
    """Both ways to decode a token behind the same prompt."""
    session = wb.Session(lm, prompt, max_new_tokens=512, level="off", ignore_eos=True)
    session.run(rounds=1)
    store = session.state.runners["target"].store
    run = store.open(store.length + 2)
    served = DeviceModel.of(lm)
    forward = CapturedForward(served, run)
    forward.kept = session  # which owns the run
    return forward, DeviceRound(DeviceTree(), DeviceSampling(sampling, 0), recorded, (served, run))


def question(lm, prompt: list[int], sampling: Sampling, recorded: bool, tokens: int) -> Row:
    """Milliseconds on the host's clock until a token and, where it is recorded, its statistics are on the host; both
    ways in turn. What the device saves by sampling, verifying and packing itself must be worth its code."""
    forward, round_ = arms(lm, prompt, sampling, recorded)
    position, text = len(prompt) + 1, [*prompt, 1, 2]

    def beside() -> int:
        dist = sampling.dist(forward(position, text[-1]), lambda row: text)
        token = dist.choose(0, 0, position + 1)
        if recorded:
            dist.statistics([token], [0])
        return token

    def within() -> int:
        found = round_(position, 0, text[-1])
        dist = PackedDistribution(found, [0], round_.sampling, lm.vocab_size)
        token = dist.choose(0)
        if recorded:
            dist.statistics([token], [0])
        return token

    times: dict[str, list[float]] = {"beside": [], "within": []}
    taken = set()
    for n in range(tokens + 8):
        for name, run in (("beside", beside), ("within", within)):
            start = clock(lm.device)
            taken.add(run())
            if n >= 8:
                times[name].append(1000 * (clock(lm.device) - start))
    why = {"forward": forward.replayed.reason, "round": round_.replayed.reason}
    if lm.device.type != "cuda":
        return {"tokens": sorted(taken), "not_captured": why}
    outside, inside = (statistics.median(times[name]) for name in ("beside", "within"))
    saved = 1 - inside / outside
    return {"captured_forward_ms": outside, "device_round_ms": inside, "saved": saved, "tokens": sorted(taken),
            "verdict": "the round on the device stays" if saved >= WORTH else "sampling on the device goes",
            "not_captured": why}  # fmt: skip


def replay_ms(replayed: Replayed) -> Row:
    """Of one after another, on the device's clock: what is left of a step is the host's."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(31)]
    for event in events:
        replayed()
        event.record()
    torch.cuda.synchronize()
    times = [first.elapsed_time(second) for first, second in zip(events, events[1:], strict=False)]
    return {"median_ms": statistics.median(times)}


def profile(run: Callable[[], Any], gpu: bool) -> Row:
    """Microseconds by kernel, of one run out of three."""
    kinds = [torch.profiler.ProfilerActivity.CUDA] if gpu else [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(3):
            run()
    if not gpu:
        return {}
    times = {event.key: event.self_device_time_total / 3 for event in found.key_averages()}
    return {"us": dict(sorted(times.items(), key=lambda pair: -pair[1])[:30]), "sum_us": sum(times.values())}


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernels(where: torch.device, given) -> Iterator[Row]:
    """The kernels beside their floors and PyTorch's attention; nothing is compiled for a comparison."""
    gpu = where.type == "cuda"
    rates = device.rates(where)
    for case in cases.cases():
        if (case.operation, case.label) not in KERNELS:
            continue
        predicted = KERNELS[case.operation, case.label]
        row = {"name": f"{case.operation} {case.label}", "floor_us": rates.floor_us(*case.work) if gpu else None,
               "predicted_us": predicted}  # fmt: skip
        if gpu:
            call = case.prepare("cuda")
            row |= timed(partial(call.run, "triton"), where)
            row["others_us"] = {}
            for name, run in cases.eager(case, call).items():
                try:
                    row["others_us"][name] = device.measure(run, where, 10).median_us
                except Exception as error:  # a backend that cannot take the shape
                    row["others_us"][name] = str(error).splitlines()[0]
        yield row


# -- phases ------------------------------------------------------------------------------------------------------------

PHASES = {"ceilings": ceilings, "tests": tests, "model": model, "kernels": kernels}


def run_phase(name: str, given) -> None:
    """Here and now: every row is printed, and written with those before it."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = device.conditions(where) | {"phase": name, "dry_run": where.type != "cuda"}
    rows: list[Row] = []
    for row in PHASES[name](where, given):
        rows.append({key: runs.rounded(value) for key, value in row.items()})
        print(json.dumps(rows[-1]), flush=True)
        runs.write(given.out / f"{name}.json", told, rows)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a phase failed or took too long."""
    parser = runs.options(__doc__)
    parser.set_defaults(out=ROOT / "benchmarks" / "results" / "device")
    parser.add_argument("--only", choices=PHASES, action="append", help="this phase; may be given again")
    parser.add_argument("--size", choices=end_to_end.SIZES, help="of the model; default: 8b on a GPU, tiny on a CPU")
    parser.add_argument("--here", action="store_true", help="without a process of its own and its limit")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = given.only or list(PHASES)
    if given.here:
        for name in wanted:
            run_phase(name, given)
        return 0
    failed = []
    for name in wanted:
        print(f"-- {name}, {LIMITS[name]} s at most", flush=True)
        command = [sys.executable, "-m", "benchmarks.device_check", "--here", "--only", name, "--out", str(given.out)]
        try:
            status, _ = _run(command + (["--size", given.size] if given.size else []), LIMITS[name])
        except subprocess.TimeoutExpired:
            status = "it took too long"
        if status:
            failed.append(name)
            print(f"-- {name}: {status}", flush=True)
    print(f"{len(wanted) - len(failed)} of {len(wanted)} phases came to their end; rows lie in {given.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
