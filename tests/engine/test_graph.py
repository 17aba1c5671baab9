"""What a CUDA graph is captured by: the order of its calls under a CUDA that only notes them, and itself on a GPU."""

import gc
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device as devices
from workbench.device import graph
from workbench.device.graph import Replayed
from workbench.rounds import round as rounds

WAITS = "called a synchronizing CUDA operation"


class Cuda:
    """Stands for `torch.cuda`: notes what is asked of it; a capture that `breaks` ends as torch's does, badly."""

    def __init__(self):
        self.calls: list[str] = []
        self.now, self.mode, self.breaks, self.made = "main", 0, False, 0

    def Stream(self, where):
        self.made += 1
        name = "side" if self.made == 1 else f"own {self.made - 1}"
        return SimpleNamespace(name=name, device="cpu", wait_stream=lambda other: self.note(f"{name} waits"))

    def note(self, call: str) -> None:
        self.calls.append(call)

    def current_stream(self):
        return SimpleNamespace(name="main", wait_stream=lambda other: self.note(f"main waits for {other.name}"))

    def current_device(self):
        return 0

    @contextmanager
    def device(self, where):
        yield

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, made, pool=None, stream=None, capture_error_mode="global"):
        """As torch 2.11: where the end of the capture raises, the stream stays."""
        before, self.now = self.now, stream.name
        self.note(f"capture in {pool}, {capture_error_mode}")
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.breaks and pool:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore") from error
        self.now = before
        self.note("end")
        if error:
            raise error

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.note("replay"), reset=lambda: self.note("reset"))

    def graph_pool_handle(self):
        return (0, 7)

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA that notes its calls; afterwards stream, debug mode, collector, lock and warnings are as before."""
    fake = Cuda()
    monkeypatch.setattr(graph, "cuda", fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *at: fake.note(f"leave {at}"), raising=False)
    clear()
    shown, filters = warnings.showwarning, warnings.filters[:]
    yield fake
    clear()
    assert (fake.now, fake.mode) == ("main", 0) and gc.isenabled() and not graph._capturing.locked()
    assert warnings.showwarning is shown and warnings.filters == filters


GPU = torch.device("cuda", 0)


def clear():
    graph._side.cache_clear()
    graph._idle.cache_clear()


def test_every_live_graph_has_a_stream_of_its_own(cuda):
    """One that is closed, forgotten or failed gives it back, closed once for all; one too many runs as it is."""
    used = []
    live = [Replayed(lambda: used.append(cuda.now), GPU) for _ in range(graph._STREAMS + 1)]
    for replayed in live:
        replayed()
    streams = [name for name in used if name.startswith("own")]
    assert len(set(streams)) == len(streams) == graph._STREAMS and cuda.made == 1 + graph._STREAMS
    assert live[-1].reason == "24 graphs are alive already" and not live[-1].captured
    live[3].close()
    live[3].close()
    del live[5], replayed
    assert cuda.calls.count("reset") == 2
    again = [Replayed(lambda: used.append(cuda.now), GPU) for _ in range(3)]
    for replayed in again:
        replayed()
    assert sorted(name for name in used[len(used) - 9 :] if name.startswith("own")) == sorted([streams[3], streams[5]])
    assert [replayed.captured for replayed in again] == [True, True, False]
    live[0].close()
    again[-1]()
    assert again[-1].captured and again[-1].reason is None


def test_warm_ups_run_on_a_side_stream_the_last_one_watched_and_the_capture_on_another(cuda):
    """Under the one lock of the process, without collector in the capture; a replay is no call of the function."""

    def run():
        cuda.note(f"run on {cuda.now}, mode {cuda.mode}, gc {gc.isenabled()}, locked {graph._capturing.locked()}")
        return 5

    replayed = Replayed(run, GPU)
    assert [replayed(), replayed()] == [5, 5] and replayed.captured and replayed.reason is None
    assert cuda.calls == [
        "side waits",
        "run on side, mode 0, gc True, locked True",
        "run on side, mode 0, gc True, locked True",
        "run on side, mode warn, gc True, locked True",
        "capture in (0, 7), thread_local",
        "run on own 24, mode 0, gc False, locked True",
        "end",
        "main waits for side",
        "replay",
        "replay",
    ]
    replayed.close()
    assert replayed() == 5 and cuda.calls[-2] == "reset" and not replayed.captured and replayed.reason == "closed"


def waiting():
    """As torch in the mode `warn`."""
    warnings.warn(WAITS + " (Triggered internally)", stacklevel=1)
    return 3


def test_what_waits_for_the_device_is_never_captured_and_says_where(cuda, recwarn):
    """Other threads may wait, and other warnings pass."""
    replayed = Replayed(waiting, GPU)
    assert [replayed(), replayed()] == [3, 3] and not replayed.captured
    assert replayed.reason.startswith("it waits for the device (test_graph.py, line ")
    assert not any("capture" in call for call in cuda.calls)

    def elsewhere():
        if cuda.mode == "warn":
            other = threading.Thread(target=waiting)
            other.start()
            other.join()
            warnings.warn("something else", stacklevel=1)

    replayed, seen = Replayed(elsewhere, GPU), len(recwarn)
    replayed()
    assert replayed.captured and [str(warning.message) for warning in recwarn[seen:]] == ["something else"]


def test_waits_are_seen_where_warnings_are_errors(cuda):
    replayed = Replayed(lambda: waiting() if cuda.mode == "warn" else 3, GPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replayed() == 3 and "it waits" in replayed.reason


@pytest.mark.parametrize("when", ["mode 0", "mode warn", "capture"])
@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_whatever_the_function_raises_the_process_is_as_before(error, when, cuda):
    """In a warm-up, in the watched one, in the capture: what the fixture checks. Lack of memory is told, and tried
    again; another error makes the function run as it is."""

    def run():
        place = "capture" if cuda.now.startswith("own") else f"mode {cuda.mode}"
        if cuda.now != "main" and place == when:
            raise error("no\nmore")
        return 3

    replayed = Replayed(run, GPU)
    if error is ValueError:
        assert [replayed(), replayed()] == [3, 3] and not replayed.captured
        assert replayed.reason == "the capture failed: ValueError: no"
    else:
        for _ in range(2):
            with pytest.raises(error):
                replayed()
        assert not replayed.captured and replayed.reason == "not called yet"
    assert when != "capture" or cuda.calls[-4:-1] == ["leave (0, (0, 7))", "capture in None, thread_local", "end"]


def test_a_capture_that_cuda_breaks_off_gives_stream_allocator_and_generator_back(cuda):
    cuda.breaks = True
    replayed = Replayed(lambda: 3, GPU)
    assert [replayed(), replayed()] == [3, 3] and "CUDA error: operation failed" in replayed.reason
    after = ["leave (0, (0, 7))", "capture in None, thread_local", "end", "main waits for side"]
    assert cuda.now == "main" and cuda.calls[-4:] == after and "\n" not in replayed.reason


def test_the_stand_in_breaks_as_torch_does(cuda):
    """The stream is lost where nothing puts it back: what the tests above would see."""
    cuda.breaks = True
    with pytest.raises(RuntimeError), cuda.graph(None, (0, 7), SimpleNamespace(name="own")):
        pass
    assert cuda.now == "own"
    cuda.now = "main"


def test_one_capture_at_a_time(cuda):
    """The second thread warms up when the first has captured."""
    begun, go, order = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        go.wait(5)
        order.append("first")

    threads = [threading.Thread(target=Replayed(first, GPU))]
    threads[0].start()
    begun.wait(5)
    threads.append(threading.Thread(target=Replayed(lambda: order.append("second"), GPU)))
    threads[1].start()
    threads[1].join(0.05)
    assert order == []
    go.set()
    for thread in threads:
        thread.join(5)
    assert order == ["first"] * 4 + ["second"] * 4


def test_on_a_cpu_it_runs_as_it_is():
    total = torch.zeros(1)
    replayed = Replayed(lambda: total.add_(1), torch.device("cpu"))
    assert [replayed().item() for _ in range(3)] == [1, 2, 3]
    assert not replayed.captured and replayed.reason == "the model is on 'cpu'"


# -- benchmarks --------------------------------------------------------------------------------------------------------


class Clock:
    """An event of a device on which everything takes 2 µs."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        pass

    def elapsed_time(self, end):
        return 0.002


@pytest.mark.parametrize(("run", "how", "says"), [(lambda: 3, "graph", None), (waiting, "eager", "it waits")])
def test_a_call_that_waits_is_timed_as_it_is_and_says_so(run, how, says, cuda, monkeypatch, recwarn):
    """No capture of it is tried, so nothing that is timed after it suffers."""
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    timing = devices.measure(run, GPU, repeats=4)
    assert timing.how == how and timing[:3] == pytest.approx((2, 2, 2))
    assert timing.not_captured is None if says is None else says in timing.not_captured
    assert cuda.calls.count("replay") == (5 if how == "graph" else 0)
    assert any("capture" in call for call in cuda.calls) == (how == "graph") == (cuda.calls[-1] == "reset")


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_captured_graph_reads_its_inputs_anew_and_is_freed():
    x = torch.zeros(4, device="cuda")
    replayed = Replayed(lambda: x * 2, x.device)
    for value in (1, 2, 3):
        x.fill_(value)
        assert replayed().tolist() == [2 * value] * 4 and replayed.captured
    replayed.close()
    x.fill_(5)
    assert replayed().tolist() == [10] * 4 and not replayed.captured and replayed.reason == "closed"


@pytest.mark.gpu
def test_graphs_that_are_left_compute_on_when_one_is_closed():
    """pytorch issue 193402: a reset frees the workspaces of its stream, which these products use."""
    draw = torch.Generator("cuda").manual_seed(0)
    a, b = (torch.randn(512, 512, device="cuda", generator=draw).bfloat16() for _ in range(2))
    live = [Replayed(lambda n=n: (a @ b.T.roll(n, 0)).sum(1), a.device) for n in range(5)]
    want = [replayed().clone() for replayed in live]
    for closed in range(4):
        live[closed].close()
        filled = [torch.full((2**22,), torch.nan, device="cuda") for _ in range(8)]  # where the workspace was
        for n in range(closed + 1, 5):
            assert live[n].captured and torch.equal(live[n](), want[n])
        del filled


@pytest.mark.gpu
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0] * 3,
        lambda x: x * torch.tensor([3.0, 3.0, 3.0], device="cuda"),
        lambda x: x * 3 * torch.multinomial(x, 1).add(1).sign(),
    ],
    ids=["item", "mask", "upload", "multinomial"],
)
def test_torch_tells_of_a_wait(wait):
    """Nothing of these is tried under a capture (newer torch draws without a wait, and is captured)."""
    x = torch.ones(3, device="cuda")
    replayed = Replayed(lambda: wait(x), x.device)
    assert replayed().tolist() == [3, 3, 3] and replayed().tolist() == [3, 3, 3]
    assert replayed.captured or "it waits for the device (test_graph.py" in replayed.reason


BROKEN = """
import torch
from workbench.device import graph
from workbench.device.graph import Replayed

x = torch.ones(3, device="cuda")
before = torch.cuda.current_stream()
graph._first_wait = lambda function: None  # a wait that torch does not tell of
for _ in range(2):
    replayed = Replayed(lambda: x * x.sum().item(), x.device)
    assert replayed().tolist() == [3, 3, 3] and replayed().tolist() == [3, 3, 3]
    assert not replayed.captured and "capture failed" in replayed.reason, replayed.reason
    assert torch.cuda.current_stream() == before
torch.randn(2, device="cuda"), torch.multinomial(x, 1)  # the generator is not in a capture
torch.cuda.empty_cache()  # nor is the allocator
replayed = Replayed(lambda: x * 2, x.device)
assert replayed().tolist() == [2, 2, 2] and replayed.captured, replayed.reason
print("usable")
"""


@pytest.mark.gpu
def test_after_a_broken_capture_the_process_is_usable():
    """In a process of its own, since it may not be."""
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "usable", done.stderr[-2000:]


@pytest.mark.gpu
def test_another_thread_that_computes_and_waits_does_not_break_a_capture():
    """Two sessions in two threads: forwards timed on the host in one, captures in the other."""
    x, ready, halt, failed = torch.ones(64, 64, device="cuda"), threading.Event(), threading.Event(), []

    def other():
        y = torch.ones(64, 64, device="cuda")
        try:
            while not halt.is_set():
                rounds.Round._clock(SimpleNamespace(device=y.device))
                (y @ y).cpu()
                ready.set()
        except Exception as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        ready.wait(60)  # it has its cuBLAS: making one waits for the whole device
        for _ in range(50):
            replayed = Replayed(lambda: x @ x, x.device)
            replayed()
            assert replayed.captured, replayed.reason
    finally:
        halt.set()
        thread.join()
    assert not failed
