"""The widgets without a browser: what is sent, what the buttons do, and that closing frees everything."""

import asyncio
import base64
import gc
import html
import json
import re
import threading
import weakref

import pytest

import workbench as wb
from tests.session.empty_rounds import Search
from workbench import views, web
from workbench.views.static import svg
from workbench.widgets import SessionWidget, TraceWidget

PROMPT = "def fibonacci(n):"


@pytest.fixture(autouse=True)
def no_loop():
    """A browser test may have left an event loop running in this thread."""
    left = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(left)


class Front:
    """The browser's side: holds the tokens it was sent, asks for all where rounds are missing."""

    def __init__(self, widget):
        self.texts, self.rounds, self.last, self.sent, self.refused = [], 0, {}, [], []
        self.widget = widget
        widget.send = lambda content, buffers=None: self.told(**content)
        widget.observe(lambda change: self.take(change["new"]), "delta")
        self.press("all")

    def press(self, act: str, **more) -> None:
        self.widget._handle_custom_msg({"act": act, **more}, [])

    def told(self, all: str | None = None, refused: str | None = None) -> None:
        if refused is None:
            self.take(all)
        else:
            self.refused.append(refused)

    def take(self, text: str) -> None:
        self.last = delta = json.loads(text)
        self.sent.append(len(text))
        assert delta["since"] <= self.rounds, "a gap"
        self.texts = self.texts[: delta["first"]] + delta["tokens"].get("text", [])
        self.rounds = delta["rounds_recorded"]

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture
def session(lm):
    return wb.Session(lm, PROMPT, max_new_tokens=12)


def test_the_front_end_sees_every_step_as_a_delta(session):
    widget = session.widget()
    front = Front(widget)
    assert front.texts == [] and widget.live
    for count in (1, 2, 3):
        front.press("step")
        assert front.text == session.text and len(front.texts) == count
    front.press("back")
    assert front.last["cursor"] == 2 and len(front.texts) == 3 and front.last["tokens"] == {}
    front.press("step")
    assert session.length == 3 and front.last["cursor"] == 3
    front.press("run")
    assert session.ended == "length" and front.text == session.text and front.last["ended"] == "length"
    assert not front.last["status"]["running"]
    widget.close()


def test_rounds_without_tokens_are_steps_too(toy):
    """The place moves where the cursor does not; the hypotheses come with their rounds."""
    session = wb.Session(toy, [0, 1, 2], Search(), max_new_tokens=6, ignore_eos=True)
    front, seen = Front(widget := session.widget()), []
    for act in ["step"] * 5 + ["back"] * 2 + ["step"]:
        front.press(act)
        place = front.last["place"]
        seen.append((place["round"], place["at"], front.last["cursor"]))
        assert set(front.last["hypotheses"].get("round", ())) <= {session.rounds - 1}
    assert seen == [(2, 1, 0), (3, 2, 0), (4, 3, 3), (5, 4, 3), (6, 5, 3), (5, 4, 3), (4, 3, 3), (5, 4, 3)]
    assert session.rounds == 6 and place["token"] == 3
    front.press("run")
    assert front.last["ended"] == "length" and front.last["place"]["round"] == session.rounds
    hypotheses = web.payload(session.trace, since=4)["hypotheses"]
    assert {*hypotheses["round"]} == {4, 5, 6} and {*hypotheses["fate"]} == {"live", "pruned", "won"}
    widget.close()


@pytest.fixture
def drafting(lm):
    decoder = wb.Speculative(drafter=wb.DraftModel("embedded-draft"))
    return wb.Session(lm, PROMPT, decoder, max_new_tokens=30, ignore_eos=True)


def test_a_round_is_shown_phase_by_phase(drafting):
    """Each press opens the next phase; nothing that a later one decides is sent. Then a round comes whole again."""
    front = Front(widget := drafting.widget())
    front.press("step")
    while not drafting.trace.rounds["drafted"].iloc[-1]:
        front.press("step")
    known = len(front.texts)
    for phase in range(5):
        front.press("step", by="phase")
        assert front.last["phase"] == (phase if phase < 4 else None)
        assert (len(front.texts) == known) == (phase < 3)
        fates = front.last["drafts"].get("fate")
        assert (fates is None) == (phase < 2)
        assert ("cache_bytes" in front.last["rounds"]) == (phase == 4)
    assert drafting.rounds == front.rounds and front.text == drafting.text
    front.press("step", by="phase")
    assert front.last["phase"] == 0 and drafting.rounds == front.rounds and front.text != drafting.text
    front.press("step")  # the open round is closed, and one more follows
    assert front.last["phase"] is None and front.text == drafting.text and front.rounds == drafting.rounds
    widget.close()


def test_a_recorded_round_is_shown_phase_by_phase_too(drafting):
    """Gone back, what lies ahead is taken out of the view until it is decoded, or passed, again."""
    front = Front(widget := drafting.widget())
    for _ in range(5):
        front.press("step")
    front.press("back")
    front.press("back")
    front.press("step", by="phase")
    assert front.last["phase"] == 0 and front.rounds == drafting.round + 1 < drafting.rounds
    assert max(front.last["rounds"]["round"]) == drafting.round
    front.press("back")
    assert front.last["phase"] is None and front.rounds == drafting.rounds and front.text == drafting.trace.text
    widget.close()


def test_it_decodes_until_a_condition_holds(session):
    front = Front(widget := session.widget())
    front.press("run", until="index >= 4")
    assert session.length == 5 and front.last["status"]["message"] == "Stopped where index >= 4."
    front.press("run", until="no such name > 3")
    assert session.length == 5 and len(front.refused) == 1 and "\n" not in front.refused[0].strip()
    front.press("run", until="")
    assert session.ended == "length" and front.last["status"]["message"] == ""
    widget.close()


def test_it_branches_and_shows_either_run(session):
    front = Front(widget := session.widget())
    for _ in range(6):
        front.press("step")
    whole, before = session.text, front.texts[:2]
    front.press("fork", index=2, text=" return")
    branch = widget.branched
    assert branch is widget.session is not session and branch.text.startswith("".join([*before, " return"]))
    assert front.text == branch.text and front.last["id"] == branch.trace.id
    assert {"index": 2, "text": "forced token"} in front.last["marks"]
    assert [(one["name"], one["on"]) for one in front.last["runs"]] == [("A", False), ("B", True)]
    front.press("step")
    assert front.text == branch.text and session.text == whole  # the other is as it was
    front.press("choose", run=0)
    assert front.text == whole and widget.session is session
    for wrong in ({"act": "choose", "run": 7}, {"act": "fork", "index": 99, "text": "x"}):
        front.press(**wrong)
    assert len(front.refused) == 2 and front.text == whole
    widget.close()


def test_the_view_says_what_the_run_promises(session):
    front = Front(widget := session.widget())
    front.press("step")
    assert front.last["badge"]["text"] == "= exact" and not front.last["badge"]["caution"] and front.last["runs"] == []
    widget.close()


def test_a_delta_does_not_grow_with_the_run(lm):
    session = wb.Session(lm, PROMPT, max_new_tokens=40)
    front = Front(widget := session.widget())
    sizes = []
    for _ in range(30):
        front.press("step")
        sizes.append(front.sent[-1])
    whole = len(web.to_json(web.payload(session.trace)))
    assert max(sizes[20:]) < 1.5 * max(sizes[1:10]) < whole / 3
    widget.close()


def test_candidates_are_read_with_the_sessions_own_tokenizer(session):
    front = Front(widget := session.widget())
    front.press("step")
    assert front.last["names"] and all(
        text == session.lm.tokenizer.decode([int(token)]) for token, text in front.last["names"].items()
    )
    widget.close()


def test_a_run_leaves_the_event_loop_free_and_pauses(lm):
    """Rounds run in another thread; between them the loop answers, and Pause acts after the round."""
    session = wb.Session(lm, PROMPT, max_new_tokens=200, ignore_eos=True)
    widget = session.widget()
    front, threads = Front(widget), set()
    step = session.advance
    session.advance = lambda *rest: threads.add(threading.get_ident()) or step(*rest)

    async def press():
        front.press("run")
        beats = 0
        while session.length < 8:
            await asyncio.sleep(0.001)
            beats += 1
        assert widget.running and beats > 2
        front.press("step")  # ignored while it runs
        front.press("back")
        front.press("pause")
        await widget._task
        return session.length

    stopped = asyncio.run(press())
    assert 8 <= stopped < 200 and session.length == stopped and not widget.running
    assert threading.get_ident() not in threads
    assert front.text == session.text and front.last["status"]["running"] is False
    widget.close()


def test_an_error_is_said_in_the_widget(session):
    front = Front(widget := session.widget())

    def fail(*_):
        raise wb.NumericalError("the logits hold\nNaN")

    session.advance = fail
    front.press("step")
    assert front.last["status"] == {"running": False, "message": "the logits hold NaN"}
    widget.close()


@pytest.mark.parametrize("running", [False, True], ids=["idle", "running"])
def test_closing_frees_session_caches_and_task(lm, running):
    async def use():
        session = wb.Session(lm, PROMPT, max_new_tokens=60, ignore_eos=True)
        widget = session.widget()
        front = Front(widget)
        task = widget.run()
        while session.length < 3:
            await asyncio.sleep(0.001)
        if not running:
            widget.pause()
            await task
        store = session.state.runners["target"].store
        kept = [weakref.ref(thing) for thing in (session, store, session.trace, widget)]
        widget.close()
        if running:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert task.done() and widget._task is None
        front.press("step")  # nothing happens any more
        return kept

    kept = asyncio.run(use())
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_a_widget_that_is_open_holds_its_session(lm):
    """The check above can fail: without `close` all stays."""
    widget = wb.Session(lm, PROMPT, max_new_tokens=2).widget()
    kept = weakref.ref(widget.session)
    gc.collect()
    assert kept() is not None
    widget.close()
    gc.collect()
    assert kept() is None


def test_the_saved_output_is_readable_without_a_kernel(tree):
    widget = tree.widget()
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == f"TraceWidget({tree!r})" and "0x" not in data["text/plain"]
    assert "<script" not in data["text/html"] and "drafted and kept" in data["text/html"]
    figure = views.signals(tree)
    (alt, image) = re.search(r'<img alt="(.*?)" src="data:image/svg\+xml;base64,(.*?)">', data["text/html"]).groups()
    assert html.unescape(alt) == views.description(figure) and base64.b64decode(image).decode() == svg(figure)
    widget.close()
    assert repr(widget) == "TraceWidget(closed)"


def test_the_reader_sends_all_once_and_carries_no_state(tree):
    """The trace itself is no trait: a saved notebook does not hold it twice."""
    front = Front(widget := tree.widget())
    assert isinstance(widget, TraceWidget) and not isinstance(widget, SessionWidget) and not widget.live
    assert front.text == tree.text and widget.delta == ""
    front.press("step")
    assert len(front.sent) == 1
    widget.close()


def test_the_module_asks_for_nothing_outside():
    assert "http" not in TraceWidget._esm and "import " not in TraceWidget._esm and "url(" not in TraceWidget._css
