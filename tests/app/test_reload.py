"""A tab that is reloaded finds its runs again, also one that is still being decoded; nobody else does."""

from types import SimpleNamespace

import gradio as gr
import pytest

import workbench as wb
from tests.app.visitor import Visitor
from workbench.dashboard import build_app, visits
from workbench.dashboard.app import closed
from workbench.dashboard.visits import VISITS, forget_left

KEY = "0123456789abcdef0123456789abcdef"


def gone(name: str) -> None:
    """Its page was closed."""
    closed(gr.Request(session_hash=name))


@pytest.mark.parametrize("heard", [True, False], ids=["left", "not heard to leave"])
def test_a_reload_finds_the_runs_and_the_decoding_goes_on(app, heard):
    first = Visitor(app, "first page", key=KEY).start(tokens=60)
    first.fire("run", {"pace": 0.02})
    visit = VISITS["first page"]
    if heard:
        gone("first page")
    again = Visitor(app, "second page", empty=False, key=KEY)
    assert VISITS["second page"] is visit and "first page" not in VISITS
    assert again.playing and again.runs == ["A · autoregressive*"] and again.view["live"] == "second page"
    gone("first page")  # which may be heard late
    again.watch()
    assert len(again.texts) == 60 and VISITS["second page"] is visit
    gone("second page")
    forget_left(older=-1, decoding=-1)


@pytest.mark.parametrize("key", ["", "f" * 32, "short", "x" * 65, "a b" * 8])
def test_without_the_key_a_page_is_a_new_one(app, key):
    mine = Visitor(app, "mine", key=KEY).start(tokens=4).step()
    other = Visitor(app, "other", empty=False, key=key)
    assert other.runs == ["A · cache cliff*"] and VISITS["mine"] is not VISITS["other"]
    assert mine.step().cursor == 2
    for name in ("mine", "other"):
        gone(name)
    forget_left(older=-1, decoding=-1)


def test_a_visitor_of_another_address_finds_nothing(app):
    mine = Visitor(app, "mine", key=KEY).start(tokens=4)
    VISITS[mine.name].client = "somebody"
    assert visits.come_back(KEY, "theirs", "somebody else") is None and visits.come_back(KEY, "theirs", "") is None
    assert visits.come_back(KEY, "again", "somebody") is VISITS["again"]
    gone("again")
    forget_left(older=-1, decoding=-1)


def test_of_the_tabs_that_left_a_few_are_kept(app):
    keys = [f"{n}" * 32 for n in range(visits.MOST_LEFT + 2)]
    pages = [Visitor(app, f"page {key[0]}", key=key).start(tokens=2) for key in keys]
    for page in pages:
        gone(page.name)
    found = [visits.come_back(key, f"again {key[0]}", "") for key in keys]
    assert [visit is not None for visit in found] == [False, False, *[True] * visits.MOST_LEFT]
    for key in keys:
        gone(f"again {key[0]}")
    forget_left(older=-1, decoding=-1)


def test_the_app_opens_on_a_given_trace(toy):
    trace = wb.decode(toy, [0, 1], max_new_tokens=3)
    page = Visitor(build_app(first=("run.wb", trace)), "given", empty=False)
    assert page.runs == ["A · run.wb*"] and len(page.texts) == 3 and page.view["can"] is False


def test_a_session_is_open_in_the_app_and_in_other_hands_at_once(toy, monkeypatch):
    session, asked = wb.Session(toy, [0, 1], max_new_tokens=9), {}
    served = lambda **more: asked.update(more) or SimpleNamespace(address="x")  # noqa: E731
    monkeypatch.setattr(wb, "launch", served, raising=False)
    assert session.open_in_app(browser=False) == "x"
    assert asked == {"port": 0, "browser": False, "wait": False, "trace": session}
    page = Visitor(build_app(first=("mine", session)), "shared", empty=False)
    assert page.runs == ["A · mine*"] and page.texts == [] and page.view["can"] is True
    page.step()
    assert session.length == 1
    session.step()
    assert len(page.step().texts) == 3 == session.length
    page.fire("run", {"pace": 0.01})
    session.run()  # both decode: a round is begun by one of them
    page.watch()
    assert session.ended and len(page.texts) == session.length == 9
    assert session.trace.token_ids == wb.decode(toy, [0, 1], max_new_tokens=9).token_ids


def test_a_tab_that_does_not_come_back_is_forgotten(app):
    first = Visitor(app, "first", key=KEY).start(tokens=400)
    first.fire("run", {"pace": 1})
    visit = VISITS["first"]
    gone("first")
    assert visit.branches and visit.worker.is_alive()
    forget_left(older=-1)
    assert visit.branches  # it is still decoding
    forget_left(decoding=-1)
    assert visit.branches == [] and visit.worker is None and visits.come_back(KEY, "late", "") is None
