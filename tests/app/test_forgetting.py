"""Pages that were closed leave nothing behind; open ones, and those just closed, are left alone."""

from types import SimpleNamespace

import gradio as gr
from gradio.state_holder import StateHolder

from workbench.cursor import Replay
from workbench.dashboard import limits
from workbench.dashboard.limits import Pages
from workbench.dashboard.serve import forget_gone
from workbench.dashboard.visits import VISITS, Branch, Visit
from workbench.trace import Trace


def test_only_pages_that_nothing_holds_open_for_long_are_forgotten_whatever_the_clock_says(monkeypatch):
    """Also one that never held itself open, as a script's: its runs once stayed half an hour, with their memory."""
    with gr.Blocks() as app:
        gr.Textbox()
    holder, pages, now = StateHolder(), Pages(limited=True), [1000.0]
    holder.set_blocks(app)
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now[0]))  # a server may run beside this test
    visits = {}
    for name in ("open", "script", "left"):
        holder[name].is_closed = False
        visits[name] = VISITS[name] = Visit(name, branches=[Branch("a run", Replay(Trace([])))])
        pages.hear(name, "somebody")
    with pages.beating("open", "somebody"):
        with pages.beating("left", "somebody"):
            now[0] += 3600
        pages.hear("just here", "somebody")
        now[0] += 5
        forget_gone(pages, holder, older=10)
        assert list(holder.session_data) == list(holder.time_last_used) == ["open", "left"]
        now[0] += 6
        forget_gone(pages, holder, older=10)
    assert list(holder.session_data) == list(holder.time_last_used) == ["open"] and len(pages) == 1
    assert [bool(visit.branches) for visit in visits.values()] == [True, False, False] and "script" not in VISITS
