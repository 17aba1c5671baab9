"""Several visitors of the served app at once, watching and stepping runs of their own: what they get, what it costs.

    python benchmarks/visitors.py [--visitors 10] [--seconds 300] [--watch 20] [--waves 2]
                                  [--out benchmarks/results/visitors.json]

The app is served by a process of its own, with one thread per operation of torch; the visitors are Python clients
that speak to it over HTTP as pages do. They first all watch a long run of plain decoding at once, then step for the
given time: run speculatively, reload the page in the midst of it, watch to the end, pick a token, branch there, by
phase, by round, forget; then cancel a long run. Reported: updates and decoded rounds per second of the watched runs,
how long an answer took, processor time of the server beside decoding over that of decoding, errors, texts that were not
what the same prompt gives alone, rounds that came after a run was cancelled, and memory and open sessions before,
during and after. Whether memory is flat shows in the second wave of visitors: the first one also pays for what is
loaded once.
"""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import httpx

from workbench.training.prompts import held_out_prompts

TOKENS, LONG = 32, 512  # of a run while stepping, and of the one that all watch
PLAINLY = {"temperature": 0.0, "top_p": "", "seed": 0, "shape": "", "cache_policy": "", "cache_quantizer": ""}
PAUSE_S = 0.2  # between two presses
WARM_S = 1.0  # into the watched runs before anything is measured
SAMPLE_S = 1.0  # between two looks at the server's memory

Figures = dict[str, Any]


def server(pipe: Connection) -> None:
    """Serve the app; answer every message on the pipe with figures of this process, until there is none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import gc
    import socket
    import weakref

    import workbench as wb
    from workbench.dashboard import launch, serve
    from workbench.dashboard.jobs import Worker
    from workbench.dashboard.visits import VISITS, Branch
    from workbench.session import Session

    over, spent = [0.0], {}  # processor time of the runs that are over, and of every thread that decodes
    sessions = weakref.WeakSet()
    decode, advance, begin = Worker.run, Branch.advance, Session._begin

    def run(worker: Worker) -> None:
        decode(worker)
        spent.pop(threading.get_ident(), None)
        over[0] += time.thread_time()

    def step(branch: Branch, *values, **named) -> tuple[bool, bool]:
        found = advance(branch, *values, **named)
        if isinstance(threading.current_thread(), Worker):
            spent[threading.get_ident()] = time.thread_time()
        return found

    def count(session: Session, *values, **named) -> None:
        sessions.add(session)
        begin(session, *values, **named)

    Worker.run, Branch.advance, Session._begin = run, step, count
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wb.decode(wb.load("embedded"), "def f(x):", wb.Speculative(), max_new_tokens=4)
    serve.SWEEP_S, serve.CLOSED_S = 2.0, 1.0  # closed pages are forgotten within seconds, else it takes minutes
    app = launch(port=port, browser=False, wait=False)
    pipe.send(port)
    page_size = os.sysconf("SC_PAGE_SIZE") / 2**20
    while pipe.recv():
        if not VISITS:
            gc.collect()
        pipe.send({
            "cpu_s": time.process_time(),
            "decode_s": over[0] + sum(list(spent.values())),
            "memory_mib": int(Path("/proc/self/statm").read_text().split()[1]) * page_size,
            "sessions": len(sessions),
            "pages": len(VISITS) + len(app.state_holder.session_data),
        })  # fmt: skip
    os._exit(0)


class Page:
    """A page without a browser: fires the app's events over HTTP, holds what the trace view would hold."""

    def __init__(self, port: int, name: str):
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        self.name, self.heart = name, self._beat(name)
        config = self._get("/config")
        self.events = {one["api_name"]: one for one in config["dependencies"]}
        parts = config["components"]
        self.shown = {one["id"]: one["props"].get("value") for one in parts}
        self.named = {one["props"].get(name): one["id"] for name in ("label", "elem_id") for one in parts}
        self.state = {one["id"] for one in parts if one["type"] == "state"}
        self.view: dict[str, Any] = {}
        self.answers: list[float] = []  # seconds each
        self.presses = self.reloads = 0
        self.shown[self.named["key"]] = name.ljust(16, "-")
        self.fire("loaded")

    def _beat(self, name: str) -> Any:
        """While it lasts, the server takes the page of that name to be open."""
        heart = self.http.stream("GET", f"/gradio_api/heartbeat/{name}")
        heart.__enter__()
        return heart

    def reload(self) -> None:
        """The same tab under another name: it finds its runs again. Its old page is heard to leave afterwards."""
        self.reloads += 1
        old, self.name = self.heart, f"{self.name.partition('again')[0]}again{self.reloads}"
        self.heart = self._beat(self.name)
        self.fire("loaded")
        old.__exit__(None, None, None)

    def _get(self, path: str) -> Any:
        return _checked(self.http.get(path)).json()

    def press(self, event: str, **told: Any) -> None:
        """Fire an event that says this."""
        self.fire(event, told)
        self.presses += 1

    def fill(self, **values: Any) -> None:
        """Let the named fields hold these values."""
        self.shown |= {self.named[name.replace("_", " ")]: value for name, value in values.items()}

    def fire(self, event: str, told: dict[str, Any] | None = None) -> None:
        """Fire an event with what the page shows now, and take the updates in."""
        one = self.events[event]
        form = [self.shown[number] for number in self.events["fill_go"]["inputs"]]
        self.shown[self.named["filled"]] = json.dumps({"values": form, "told": told or {}})
        inputs = [None if number in self.state else self.shown[number] for number in one["inputs"]]
        asked = {"data": inputs, "fn_index": one["id"], "session_hash": self.name, "event_data": told}
        _checked(self.http.post("/gradio_api/queue/join", json={**asked, "trigger_id": None}))
        with self.http.stream("GET", f"/gradio_api/queue/data?session_hash={self.name}") as reply:
            found = (json.loads(line[5:]) for line in reply.iter_lines() if line.startswith("data:"))
            done = next(message for message in found if message["msg"] == "process_completed")
        if not done["success"]:
            raise RuntimeError(f"{event}: {done['output']}")
        for number, value in zip(one["outputs"], done["output"]["data"], strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            self.shown[number] = value
            if number == self.named["view"] and value:
                self.take(json.loads(value))

    def take(self, delta: dict[str, Any]) -> None:
        """What the page holds after a delta, by the contract of `workbench.web.data`."""
        if delta["since"] == 0:
            self.view = delta
            return
        if delta["id"] != self.view["id"] or delta["since"] > self.view["rounds_recorded"]:
            raise RuntimeError(f"a delta of {delta['id']} from {delta['since']} on does not follow what is held")
        before, after = self.view["tokens"], delta["tokens"]
        kept = sum(round < delta["since"] for round in before.get("round", ()))
        tokens = {name: before.get(name, [])[:kept] + after.get(name, []) for name in ("text", "round")}
        self.view = {**self.view, **delta, "tokens": tokens}

    def watch(self, until: float = float("inf")) -> list[float]:
        """Look at the run as the page does, `web/app.js`, until it is over; the times of the updates."""
        times = []
        while self.view["live"] and time.monotonic() < until:
            held = {"run": self.view["id"], "rounds": self.view["rounds_recorded"], "cursor": self.view["cursor"]}
            asked = time.monotonic()
            found = self._get(f"/live/{self.name}?{urlencode(held)}")
            took = time.monotonic() - asked
            self.answers.append(took)
            if found.get("rest"):
                self.fire("tick")
            elif found:
                self.take(found)
                times.append(time.monotonic())
            time.sleep(max(self.view["beat"] / 1000 - (time.monotonic() - asked), 2 * took))
        return times

    @property
    def text(self) -> str:
        return "".join(self.view["tokens"].get("text", ()))

    def close(self) -> None:
        self.heart.__exit__(None, None, None)
        self.http.close()


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.status_code != 200:
        raise RuntimeError(f"{reply.url.path}: {reply.status_code} {reply.content[:200]!r}")
    return reply


class Visitor(threading.Thread):
    """One who first watches one long run for some seconds, then runs and steps until the time is over."""

    def __init__(self, port: int, number: int, gate: threading.Barrier, watch: float):
        super().__init__(name=f"visitor {number}")
        rows = held_out_prompts()
        self.prompt = rows[number % len(rows)]["prompt"][-400:]
        self.page, self.gate, self.watch = Page(port, f"visitor{number}"), gate, watch
        self.until = float("inf")
        self.error = ""
        self.rounds = 0.0  # per second, of the run that was watched
        self.watched: list[float] = []
        self.answers: list[float] = []
        self.texts: list[str] = []
        self.late = self.cancelled = 0  # rounds decoded after a run was cancelled, at most; runs that were
        self.refused = 0  # presses of Run while too many were being decoded

    def run(self) -> None:
        page = self.page
        try:
            self._open("autoregressive", LONG, ignore_eos=True)
            self._run(wait=False)
            self.gate.wait()
            page.watch(time.monotonic() + WARM_S)
            page.answers, first, started = [], page.view["rounds_recorded"], time.monotonic()
            self.watched = page.watch(started + self.watch)
            self.rounds = (page.view["rounds_recorded"] - first) / (time.monotonic() - started)
            self.answers = page.answers
            page.press("pause")
            page.press("forget")
            self.gate.wait()
            while time.monotonic() < self.until:
                self._round()
        except Exception as error:  # noqa: BLE001  (whatever it was is reported)
            self.error = f"{type(error).__name__}: {error}"
            self.gate.abort()
        finally:
            page.close()

    def _open(self, decoder: str, tokens: int, ignore_eos: bool) -> None:
        run = {"prompt": self.prompt, "max_new_tokens": tokens, "decoder": decoder, "ignore_eos": ignore_eos}
        self.page.fill(**PLAINLY, **run)  # the page opens on a preset
        self.page.press("start")

    def _run(self, wait: bool = True) -> None:
        """Decode on; where too many do already, again in a moment."""
        while True:
            try:
                return self.page.press("run")
            except RuntimeError as refused:
                if "in a moment" not in str(refused):
                    raise
            self.refused += 1
            if not wait:
                return
            time.sleep(PAUSE_S)

    def _round(self) -> None:
        self._open("speculative", TOKENS, ignore_eos=False)
        self._run()
        self.page.reload()
        self.page.watch()
        self.texts.append(self.page.text)
        presses = (
            ("pick", {"index": 3}), ("fork", {"index": 3, "text": " if"}), ("step", {"by": "phase"}),
            ("step", {"by": "phase"}), ("step", {"by": "round"}), ("forget", {}), ("choose", {"run": 0}),
        )  # fmt: skip
        for event, told in presses:
            self.page.press(event, **told)
            time.sleep(PAUSE_S)
        self.page.press("forget")
        self._cancel()

    def _cancel(self) -> None:
        self._open("autoregressive", LONG, ignore_eos=True)
        self._run()
        self.page.watch(time.monotonic() + PAUSE_S)
        self.page.press("pause")
        at = self.page.view["rounds_recorded"]
        time.sleep(PAUSE_S)
        self.page.fire("tick")
        self.late = max(self.late, self.page.view["rounds_recorded"] - at)
        self.cancelled += 1
        self.page.press("forget")


def measure(visitors: int, seconds: float, watch: float = 20, waves: int = 1) -> dict[str, Any]:
    """The figures of `visitors` at once, who watch one run for some seconds and step for some; then others come, as
    often as there are waves. Processor times are those of the first."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=server, args=(there,), daemon=True)
    process.start()
    there.close()  # so that a server that fails ends this, too
    port = here.recv()
    samples: list[Figures] = []

    def sample() -> Figures:
        here.send(True)
        samples.append(here.recv())
        return samples[-1]

    crowd, left, shares = [], [], []
    try:
        before = sample()
        for _ in range(waves):
            gate = threading.Barrier(visitors + 1)
            come = [Visitor(port, len(crowd) + number, gate, watch) for number in range(visitors)]
            crowd += come
            shares.append(_visit(come, gate, seconds, watch, sample))
            left.append(_left(sample))
    finally:
        here.send(False)
        process.join(10)
    alone = _alone(crowd)
    answers = sorted(1000 * one for visitor in crowd for one in visitor.answers)
    watched = [visitor.watched for visitor in crowd if len(visitor.watched) > 1]
    rates = [(len(times) - 1) / (times[-1] - times[0]) for times in watched]
    memory = [one["memory_mib"] for one in samples]
    return {
        "visitors": visitors,
        "seconds": seconds,
        "cores": os.cpu_count(),
        "errors": [visitor.error for visitor in crowd if visitor.error],
        "runs": sum(len(visitor.texts) for visitor in crowd),
        "presses": sum(visitor.page.presses for visitor in crowd),
        "refused_for_a_moment": sum(visitor.refused for visitor in crowd),
        "reloads": sum(visitor.page.reloads for visitor in crowd),
        "cancelled": sum(visitor.cancelled for visitor in crowd),
        "rounds_after_cancel": max(visitor.late for visitor in crowd),
        "mixed_texts": sum(text != alone[visitor.prompt] for visitor in crowd for text in visitor.texts),
        "updates_per_s_median": median(rates) if rates else None,
        "updates_per_s_least": min(rates, default=None),
        "rounds_per_s_median": median(visitor.rounds for visitor in crowd),
        "answer_ms_median": median(answers) if answers else None,
        "answer_ms_p95": answers[int(0.95 * len(answers))] if answers else None,
        "watching_cpu_over_decode_cpu": shares[0][0],
        "all_else_cpu_over_decode_cpu_while_stepping": shares[0][1],
        "load_average": os.getloadavg()[0],
        "memory_mib": {"before": memory[0], "most": max(memory),
                       "after_each_wave": [one["memory_mib"] for one in left],
                       "over_time": memory[:: max(1, len(memory) // 12)]},
        "sessions": {"before": before["sessions"], "most": max(s["sessions"] for s in samples),
                     "after": left[-1]["sessions"]},
        "pages_after": left[-1]["pages"],
    }  # fmt: skip


def _visit(
    crowd: list[Visitor], gate: threading.Barrier, seconds: float, watch: float, sample: Callable[[], Figures]
) -> tuple[float | None, float | None]:
    """Let them all watch, then step; the server's other processor time over that of decoding in both."""
    for visitor in crowd:
        visitor.start()
    try:
        gate.wait()
        time.sleep(1.5 * WARM_S)
        first = sample()
        time.sleep(max(0.0, watch - WARM_S))
        last = sample()
        gate.wait()
        begun = sample()
        for visitor in crowd:
            visitor.until = time.monotonic() + seconds
        while any(visitor.is_alive() for visitor in crowd):
            time.sleep(SAMPLE_S)
            ended = sample()
    except threading.BrokenBarrierError:
        for visitor in crowd:
            visitor.join()
        return None, None
    return _beside(first, last), _beside(begun, ended)


def _beside(first: Figures, last: Figures) -> float | None:
    decode = last["decode_s"] - first["decode_s"]
    return (last["cpu_s"] - first["cpu_s"] - decode) / decode if decode else None


def _left(sample: Callable[[], Figures], patience: float = 30) -> Figures:
    """The figures once every page has been let go of."""
    deadline = time.monotonic() + patience
    while (found := sample())["pages"] and time.monotonic() < deadline:
        time.sleep(SAMPLE_S)
    return found


def _alone(crowd: list[Visitor]) -> dict[str, str]:
    """Every visitor's text, decoded by itself."""
    import workbench as wb

    lm = wb.load("embedded")
    return {
        visitor.prompt: wb.decode(lm, visitor.prompt, wb.Speculative(), max_new_tokens=TOKENS).text for visitor in crowd
    }


def main() -> None:
    from benchmarks.runs import options  # which imports torch: the server sets its threads before

    given = options(__doc__, visitors=10, seconds=300.0, watch=20.0, waves=2).parse_args()
    found = json.dumps(measure(given.visitors, given.seconds, given.watch, given.waves), indent=2)
    print(found)
    if given.out:
        given.out.write_text(found + "\n")


if __name__ == "__main__":
    main()
