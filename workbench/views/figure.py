"""What all views share: the look of a figure, safe text, byte units."""

import html
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

__all__ = ["blank", "figure", "inert", "shown", "unit_of"]

GRID = "#e6e6e6"
TEMPLATE = {
    "layout": {
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1b1b1b"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"align": "left"},
        "xaxis": {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True},
        "yaxis": {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True, "title": {"standoff": 8}},
    }
}


def figure(name: str, run_id: str, traces: Iterable[Any], **layout: Any) -> go.Figure:
    """A figure in the common look; zoom is kept while the same view of the same run is drawn again."""
    common = {
        "template": TEMPLATE,
        "margin": {"l": 64, "r": 16, "t": 24, "b": 48},
        "uirevision": f"{name}:{run_id}",
        "legend": {"orientation": "h", "y": 1.04, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "showlegend": True,
    }
    return go.Figure(data=list(traces), layout={**common, **layout})


def blank(note: str) -> dict[str, Any]:
    """The annotation of a figure that has nothing to draw: it says so."""
    return {
        "text": note,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "font": {"size": 14},
    }


def inert(text: str | None) -> str:
    """Text in which nothing is taken for markup or a formula."""
    return html.escape(text or "").replace("$", "&#36;")


def shown(text: Any, limit: int = 40) -> str:
    """Model text as an inert label: white space visible, long text cut."""
    if not isinstance(text, str):
        return ""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    for mark, visible in (("\n", "⏎"), ("\r", "␍"), ("\t", "⇥"), (" ", "␣")):
        text = text.replace(mark, visible)
    return inert(text)


def unit_of(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which a number of bytes reads well: B, KiB, MiB or GiB."""
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024**power:
            return float(1024**power), name
    return 1.0, "B"
