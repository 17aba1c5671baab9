"""Which forward passes a run consisted of, and how long each took."""

import plotly.graph_objects as go

from workbench.trace import Trace
from workbench.views.figure import blank, figure, inert
from workbench.views.palette import colour

__all__ = ["forwards_timeline"]


def forwards_timeline(trace: Trace) -> go.Figure:
    """Every forward pass as a bar on the time axis, a row per phase and model; time between passes is left out."""
    forwards = trace.forwards.dropna(subset=["wall_ms"])
    begin = (forwards["wall_ms"].cumsum() - forwards["wall_ms"]).round(4)
    rows = forwards["phase"].fillna("") + " · " + forwards["model"].fillna("")
    bars = []
    for row in dict.fromkeys(rows):
        mine = forwards[rows == row]
        phase = str(mine["phase"].iloc[0])
        facts = mine[["round", "rows", "context", "implementation"]].astype(object).where(mine.notna(), "?")
        bars.append(
            go.Bar(
                x=mine["wall_ms"].tolist(), base=begin[rows == row].tolist(), y=[inert(row)] * len(mine),
                orientation="h", name=inert(row), marker={"color": colour("phase", phase)},
                customdata=[[inert(str(value)) for value in fact] for fact in facts.to_numpy().tolist()],
                hovertemplate="round %{customdata[0]}: %{x:.3f} ms<br>%{customdata[1]} rows, context %{customdata[2]}"
                "<br>%{customdata[3]}<extra>%{y}</extra>",
            )
        )  # fmt: skip
    axes = {
        "xaxis": {"title": {"text": "time in forward passes (ms)"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "phase, model"}, "type": "category"},
    }
    notes = {} if bars else {"annotations": [blank("no forward passes recorded")]}
    return figure("forwards_timeline", trace.id, bars, barmode="overlay", **axes, **notes)
