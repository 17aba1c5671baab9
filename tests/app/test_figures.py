"""A figure that a trace does not allow is one line in its place, and the page goes on."""

import json

from workbench.dashboard import figures
from workbench.errors import BadInput, BadTrace


def test_what_refuses_to_be_drawn_says_so_in_one_line_in_the_figure_s_place(visitor, monkeypatch):
    """Headroom is refused where it is not exact; any other figure may refuse a damaged trace."""

    def headroom(trace):
        raise BadInput("these drafts were not\ntheir own texts <b>; record level='full'")

    def broken(*values):
        raise BadTrace("round 3 is missing")

    visitor.start(tokens=4, decoder="speculative").step()
    monkeypatch.setattr(figures, "headroom", headroom)
    monkeypatch.setitem(figures.FIGURES, "bit map", broken)
    for name, line in (
        ("headroom of other drafts", "these drafts were not their own texts"),
        ("bit map", "round 3 is"),
    ):
        visitor.set("figure", name)
        plot, _, words = visitor.fire("figure")
        drawn = json.loads(plot["plot"])
        assert drawn["data"] == [] and line in drawn["layout"]["annotations"][0]["text"].replace("<br>", " ")
        assert line in words and "<b>" not in words and "<b>" not in drawn["layout"]["annotations"][0]["text"]
        assert visitor.step().cursor > 0
