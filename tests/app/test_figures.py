"""A figure that a trace does not allow is one line in its place, and the page goes on."""

from types import SimpleNamespace

import pytest

from workbench.dashboard import figures
from workbench.errors import BadInput, BadTrace


@pytest.mark.parametrize("why", [BadInput, BadTrace])
def test_what_refuses_to_be_drawn_says_so_in_one_line_in_the_figure_s_place(monkeypatch, why):
    """Headroom is refused where it is not exact; any other figure may refuse a damaged trace."""

    def headroom(trace):
        raise why("these drafts were not\ntheir own texts <b>; record level='full'")

    monkeypatch.setattr(figures, "headroom", headroom)
    about, plot = figures._place("headroom of other drafts", SimpleNamespace(id="run"), 1, "dark")
    assert not plot["visible"]
    assert "these drafts were not their own texts &lt;b&gt;; record level" in about and "<b>" not in about
