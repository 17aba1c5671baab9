"""What one visitor may take: turns, time, files; and that no file, however made, can hold the app."""

import socket
import threading
import time
from pathlib import Path

import gradio as gr
import pytest

import workbench as wb
from tests.app.test_transport import refused
from workbench.dashboard import comparing, limits, opening, uploads, verifying
from workbench.dashboard.jobs import Worker
from workbench.dashboard.limits import Turn
from workbench.dashboard.uploads import FILE, MAX_INT, MAX_TRACE, ROUTES, UNFIT, UPLOADS, Uploads, sound
from workbench.dashboard.visits import VISITS
from workbench.errors import BadInput, BadTrace

from starlette.applications import Starlette  # isort: skip
from starlette.testclient import TestClient  # isort: skip


@pytest.fixture
def turns(monkeypatch):
    """One turn for the whole process, and nobody's time spent."""
    monkeypatch.setattr(limits, "_turns", threading.BoundedSemaphore(1))
    monkeypatch.setattr(limits, "_spent", type(limits._spent)(limits._spent.default_factory))


def until(holds) -> None:
    deadline = time.monotonic() + 30
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held


class Endless:
    """A branch that never ends; it counts its steps."""

    label, done, decoding, steps = "endless", False, False, 0

    def advance(self, by, holds):
        self.steps += 1
        return True, False


def test_a_paced_run_gives_its_turn_back_while_it_rests(turns):
    """Sixteen runs at one step a second once kept every other visitor out."""
    worker = Worker(Endless(), "round", pace=3600.0)
    worker.start()
    until(lambda: worker.branch.steps and worker.turn._since is None)
    turn = Turn()
    turn.take()  # the only one there is; refused where the resting run still has it
    with pytest.raises(BadInput):
        Turn().take()
    worker.stop()
    assert not worker.is_alive() and worker.error == ""
    turn.give()
    with pytest.raises(ValueError, match="too many times"):
        limits._turns.release()  # the worker gave its own once


def test_a_rested_run_waits_for_a_turn_and_a_pause_ends_the_wait(turns, monkeypatch):
    monkeypatch.setattr(limits, "RETRY_S", 0.001)
    worker = Worker(Endless(), "round", pace=0.001)
    worker.start()
    until(lambda: worker.turn._since is None and limits._turns.acquire(blocking=False))
    before = worker.branch.steps
    time.sleep(0.05)
    assert worker.branch.steps <= before + 1 and worker.is_alive()
    limits._turns.release()
    until(lambda: worker.branch.steps > before + 3)  # it goes on
    until(lambda: worker.turn._since is None and limits._turns.acquire(blocking=False))
    worker.stop()
    assert not worker.is_alive() and worker.error == ""
    limits._turns.release()


def test_a_visitor_has_a_part_of_the_turns_and_the_owner_all(turns, monkeypatch):
    monkeypatch.setattr(limits, "_turns", threading.BoundedSemaphore(limits.MOST))
    for _ in range(limits.EACH):
        Turn("greedy").take()
    with pytest.raises(BadInput, match="runs of yours are being decoded"):
        Turn("greedy").take()
    Turn("honest").take()
    for _ in range(limits.MOST - limits.EACH - 1):
        Turn().take()
    with pytest.raises(BadInput, match="the most at once; try again in a moment"):
        Turn().take()


def test_a_run_and_a_visitor_have_so_much_time(turns, monkeypatch):
    monkeypatch.setattr(limits, "RUN_S", 0.0)
    worker = Worker(Endless(), "round", pace=0.0, who="somebody")
    worker.start()
    worker.join(60)
    assert worker.error == limits.LONG and worker.branch.steps == 1
    monkeypatch.setattr(limits, "VISITOR_S", 0.0)
    with pytest.raises(BadInput, match="your runs took"):
        Turn("somebody").take()
    another = Turn("another")
    another.take()
    another.give()
    monkeypatch.setattr(limits, "WINDOW_S", -120.0)  # as if that was long ago
    somebody = Turn("somebody")
    somebody.take()
    somebody.give()
    owner = Turn("")  # whose own machine it is
    owner.take()
    assert owner.over is False
    owner.give()


def test_what_a_page_decodes_is_its_visitor_s(visitor):
    visitor.start(tokens=2)
    VISITS[visitor.name].client = "somebody"
    visitor.fire("run", {})
    assert VISITS[visitor.name].worker.turn.who == "somebody"
    visitor.watch()


class Hundred:
    """A comparison of a hundred runs of nothing. left: those to come."""

    arms, found = {}, ()

    def __init__(self, *values, **named):
        self.left = iter(range(100))

    def __iter__(self):
        return self.left


def test_a_comparison_and_a_measurement_end_when_their_time_is_over(turns, monkeypatch):
    monkeypatch.setattr(limits, "RUN_S", 0.0)
    for module in (comparing, verifying):
        monkeypatch.setattr(module, "Comparison", Hundred)
    compared = comparing.Compared(None, [], {}, "somebody")
    compared.start()
    compared.join(60)
    assert compared.error == limits.LONG and next(compared.comparison.left) == 1
    measured = verifying.Measured(None, None, [], "somebody", 100, cache=None, temperature=0.8)
    assert measured.counted(1, 100) is False
    measured.start()
    measured.join(60)
    assert [next(part.left) for part in measured.parts] == [1, 0] and measured.verdict is None
    measured.turn.take()
    assert measured.counted(1, 100) is True
    measured.turn.give()


@pytest.fixture
def handed(monkeypatch, tmp_path):
    """The upload route alone, over a register of its own; and where files lie."""
    monkeypatch.setattr(uploads, "UPLOADS", Uploads())
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    return TestClient(Starlette(routes=ROUTES)), tmp_path / "uploads"


def send(browser: TestClient, text: bytes = b"{}", name: str = "run.wb", **more):
    return browser.post("/gradio_api/upload", files={"files": (name, text)}, **more)


def test_a_visitor_hands_in_few_files_and_they_do_not_stay(handed, monkeypatch):
    browser, folder = handed
    paths = [Path(send(browser, name="../../run.wb").json()[0]) for _ in range(uploads.MOST)]
    assert all(path.parent.parent == folder and path.name == "run.wb" and path.exists() for path in paths)
    assert send(browser).status_code == 429 and len(list(folder.iterdir())) == uploads.MOST
    uploads.UPLOADS.drop(paths[0])
    assert not paths[0].parent.exists() and send(browser).status_code == 200
    uploads.UPLOADS.forget(-1.0)
    assert not list(folder.iterdir()) and not uploads.UPLOADS.holds(str(paths[1]))
    big = b"x" * (MAX_TRACE - 1)
    assert [send(browser, big).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    "form",
    [
        {"content": b"no form"},
        {"data": {"other": "1"}},
        {"files": {"other": ("a.wb", b"{}")}},
        {"files": [("files", ("a.wb", b"{}")), ("files", ("b.wb", b"{}"))]},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data"}},
        {"files": {"files": ("..", b"{}")}},
    ],
)
def test_an_upload_that_is_none_leaves_nothing_behind(handed, form):
    """Gradio keeps the rest of an upload that broke off, for good."""
    browser, folder = handed
    assert browser.post("/gradio_api/upload", **form).status_code in (200, 400)
    uploads.UPLOADS.forget(-1.0)
    assert not list(folder.iterdir()) and uploads.UPLOADS._files == {}


def test_too_large_an_upload_is_refused_before_it_is_read(handed):
    browser, folder = handed
    told = {"Content-Length": str(MAX_TRACE * 10), "Content-Type": "multipart/form-data; boundary=x"}
    assert browser.post("/gradio_api/upload", content=b"", headers=told).status_code == 413
    assert browser.post("/gradio_api/upload", content=iter([b"x"])).status_code == 411 and not folder.exists()


META = {"meta": {"_type": "gradio.FileData"}}


FILES = (
    {"path": "http://evil.example/x.wb"}, {"path": "https://169.254.169.254/x.wb", "url": "https://evil.example/"},
    {"path": "/etc/passwd"}, {"path": "/etc/passwd", "url": "http://evil.example/"}, {"url": "http://evil.example/"},
    {"path": None, "url": "http://evil.example/x.wb"}, {"path": "x.wb", "is_stream": True}, {"path": 3},
)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "event"),
    [("open", "open"), ("prompt", "start"), ("left", "beside"), ("arms", "add")],
)
def test_a_file_that_was_not_handed_in_is_refused_without_a_look_up(visitor, monkeypatch, place, event):
    """Gradio resolves whatever address stands for a file, in any control, and asks a server elsewhere about it."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *values, **more: asked.append(values))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: (asked.append(str(path)), real(path, **more))[1])
    for file in FILES:
        for value in ({**file, **META}, [{**file, **META}], {"value": {"deep": [{**file, **META}]}}):
            visitor.set(place, value)
            with pytest.raises(gr.Error) as error:
                visitor.fire(event)
            assert error.value.message == FILE
    assert not [one for one in asked if "evil" in str(one) or "passwd" in str(one) or "169" in str(one)]


def test_a_file_in_what_an_event_says_is_refused_without_a_look_up(visitor, monkeypatch):
    """Gradio looks for files in it, too, and said whether one lies in its folder."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *values, **more: asked.append(values))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: (asked.append(str(path)), real(path, **more))[1])
    visitor.start(tokens=4).step()
    events = {"step": "by", "run": "until", "fork": "text", "choose": "run", "preset": "name", "pick": "index"}
    for file in FILES:
        for event, name in events.items():
            with pytest.raises(gr.Error) as error:
                visitor.fire(event, {"index": 0, name: {**file, **META}})
            assert error.value.message == FILE
    assert len(visitor.texts) == 1 and len(visitor.runs) == 1
    assert not [one for one in asked if "evil" in str(one) or "passwd" in str(one) or "169" in str(one)]


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, 10**400, -MAX_INT - 1, [[[[[[[[[1]]]]]]]]]])
def test_what_no_page_sends_is_refused(value):
    with pytest.raises(gr.Error) as error:
        sound(value)
    assert error.value.message == UNFIT


def test_a_file_handed_in_is_opened_and_gone(visitor, toy):
    """Through the control, as a page hands it in; also where it cannot be opened."""
    trace = wb.decode(toy, [0, 1], max_new_tokens=3)
    for text, line in ((None, "Opened run.wb: 3 tokens"), ("nothing", "run.wb")):
        folder = UPLOADS.make_room("somebody", 10_000)
        trace.save(folder / "run.wb") if text is None else (folder / "run.wb").write_text(text)
        visitor.set("open", {"path": str(folder / "run.wb"), "url": "http://evil.example/", **META})
        if text is None:
            visitor.fire("open")
        else:
            refused(visitor, "open")
        assert line in visitor.status and str(folder) not in visitor.status and not folder.exists()


def test_a_file_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    """The process that tries it is killed: a thread could not be."""
    path = tmp_path / "run.wb"
    path.write_text("{}")
    ended = []
    real = opening.subprocess.Popen.wait
    watched = lambda self, *values, **more: (ended.append(self), real(self, *values, **more))[1]  # noqa: E731
    monkeypatch.setattr(opening.subprocess.Popen, "wait", watched)
    monkeypatch.setattr(opening, "WALL_S", 0.01)
    with pytest.raises(BadTrace, match=r"^run\.wb takes more time or memory"):
        opening.open_file(path)
    assert ended and ended[0].returncode == -9


@pytest.mark.parametrize("bomb", ["bytes(opening.MEMORY)", "opening.CPU_S = 1; opening.limit()\nwhile True: pass"])
def test_a_file_that_asks_for_too_much_memory_or_time_is_given_up(tmp_path, monkeypatch, bomb):
    """The limits hold in the process that tries it, whatever the file makes it do."""
    monkeypatch.setattr(opening, "TRY", opening.TRY.replace("sys.exit(", f"{bomb}; sys.exit(").replace("; ", "\n"))
    with pytest.raises(BadTrace, match=r"^run\.wb (takes more time or memory|is damaged)"):
        opening.open_file(tmp_path / "run.wb")
