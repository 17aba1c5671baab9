"""Which forward passes a run consisted of, when they ran, and how long each took."""

import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.trace.perfetto import spans
from workbench.views.figure import figure, inert, offered
from workbench.views.palette import colour
from workbench.views.words import named

PATTERNS = {"draft": "/", "score": "x", "prefill": "."}  # the target's own passes and the host's phases are plain
HATCH = {"size": 5, "solidity": 0.25, "fillmode": "overlay"}


@offered("forward passes")
def forwards_timeline(trace: Trace, theme: str | None = None) -> go.Figure:
    """Every forward pass as a bar over time, a row per phase and model; below them the phases on the host.

    Begins are derived: see `workbench.trace.perfetto.spans`.
    """
    found, passes = spans(trace), trace.forwards
    found = found[found["phase"] != "round"].sort_values("place", key=lambda place: place < 0, kind="stable")
    rows = [_row(*names) for names in zip(found["phase"], found["model"], strict=True)]
    found = found.assign(row=rows)
    facts = passes[["rows", "context", "implementation"]].reindex(found["place"]).astype(object)
    facts = facts.where(facts.notna(), "?").set_axis(found.index)
    bars = []
    for row in dict.fromkeys(rows):
        mine = found[found["row"] == row]
        phase = mine["phase"].iloc[0]
        data = [
            [number, *(inert(f"{v:g}" if isinstance(v, float) else str(v)) for v in fact)]
            for number, fact in zip(mine["round"], facts.loc[mine.index].to_numpy().tolist(), strict=True)
        ]
        pass_text = "<br>%{customdata[1]} rows, context %{customdata[2]}<br>%{customdata[3]}"
        bars.append(
            go.Bar(
                x=mine["length_ms"].tolist(), base=mine["start_ms"].tolist(), y=[inert(row)] * len(mine),
                orientation="h", name=inert(row), customdata=data, meta=["round", "rows", "context", "implementation"],
                marker={"color": colour("phase", phase), "line": {"width": 0},
                        "pattern": {"shape": PATTERNS.get(phase, ""), **HATCH}},
                hovertemplate="round %{customdata[0]}: %{x:.3f} ms" + (pass_text if mine["place"].iloc[0] >= 0 else "")
                + "<extra>%{y}</extra>",
            )
        )  # fmt: skip
    axes = {
        "xaxis": {"title": "time since the start (ms)", "rangemode": "tozero"},
        "yaxis": {"title": "phase, model", "type": "category", "autorange": "reversed"},
        "showlegend": False,
    }
    words = "No forward passes were recorded."
    if len(passes):
        words = f"{len(passes)} forward passes, {passes['wall_ms'].sum():.4g} ms in all"
        by_phase = passes.groupby("phase", sort=False)["wall_ms"].sum()
        words += ": " + ", ".join(f"{named(phase)} {ms:.4g} ms" for phase, ms in by_phase.items()) + "."
    note, height = "" if bars else "no forward passes recorded", 120 + 34 * max(len(bars), 4)
    return figure("forwards_timeline", trace.id, bars, words, theme, note, barmode="overlay", height=height, **axes)


def _row(phase: str, model: str) -> str:
    """A phase and the model that ran in it, once where both have one name."""
    return " · ".join(dict.fromkeys(named(name) for name in (phase, model) if name))
