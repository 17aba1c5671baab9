"""What all views share: the look of a figure, its words and its table, safe text, byte units.

Every view takes `theme`: "light" or "dark" for a page known to be so, None for ink that reads on both. Backgrounds are
transparent, so that the page shows through.
"""

import html
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.errors import BadInput
from workbench.errors import shown as shown_value
from workbench.trace.forms import writable
from workbench.views.palette import PAGES
from workbench.views.static import svg

CLEAR = "rgba(0,0,0,0)"
HEIGHT = 400  # of a figure that names none
CONFIG = {"showSendToCloud": False, "displaylogo": False}


class Figure(go.Figure):
    """A Plotly figure that a notebook also keeps as a drawing and as a sentence, for pages that run no script."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **more: Any) -> dict[str, Any]:
        bundle = {"text/plain": f"Figure: {description(self)}"}
        with suppress(Exception):  # a package's view may hold what only Plotly draws
            bundle["image/svg+xml"] = svg(self)
        return bundle | super()._repr_mimebundle_(include, exclude, **{"config": CONFIG, **more})

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle = self._repr_mimebundle_()
        if set(bundle) <= {"text/plain", "image/svg+xml"}:  # Plotly opens a page of its own
            self.show()
        else:
            display(bundle, raw=True)

    def show(self, *args: Any, **options: Any) -> None:
        """Show the figure by itself, as `plotly.io.show` does."""
        super().show(*args, **{"config": CONFIG, **options})


def offered(title: str, **options: Any) -> Callable[[Callable], Callable]:
    """Decorator: the app offers a view under this title, drawn with these options.

    A view that shows one round has a parameter `round`, which the app sets.
    """

    def add(view: Callable) -> Callable:
        view.offers = {title: options} | getattr(view, "offers", {})
        return view

    return add


def ink(theme: str | None) -> str:
    """The colour of text and outlines under a theme. Raises BadInput for a theme that is not there."""
    if not isinstance(theme, str | None) or theme not in PAGES:
        raise BadInput(f'theme: expected "light", "dark" or None, got {shown_value(theme)}')
    return PAGES[theme]["text"]


def _template(theme: str | None) -> dict[str, Any]:
    text = ink(theme)
    grid = PAGES[theme]["grid"]
    axis = {"gridcolor": grid, "zerolinecolor": grid, "automargin": True}
    return {
        "layout": {
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": text},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "hoverlabel": {"align": "left", "namelength": -1},
            "xaxis": axis,
            "yaxis": {**axis, "title": {"standoff": 8}},
        }
    }


def figure(
    name: str, run_id: str, traces: Iterable[Any], description: str, theme: str | None = None, note: str = "", **layout
) -> go.Figure:
    """A figure in the common look; zoom is kept while the same view of the same run is drawn again.

    description: what the figure shows in one sentence, for those who cannot see it; kept in `layout.meta`. note: HTML
    that stands in the place of what there is not, without axes.
    """
    common: dict[str, Any] = {
        "template": _template(theme),
        "height": HEIGHT,
        "margin": {"l": 64, "r": 16, "t": 32, "b": 60},
        "uirevision": f"{name}:{run_id}",
        # below all else, for the buttons stand at the top
        "legend": {
            "orientation": "h", "traceorder": "normal", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom",
        },
        "showlegend": True,
        "meta": {"view": name, "description": inert(description)},
    }  # fmt: skip
    if note:
        layout = {key: {**part, "visible": False} if key[1:5] == "axis" else part for key, part in layout.items()}
        middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        common["annotations"] = [{"text": note, "showarrow": False, "font": {"size": 14}, **middle}]
    return Figure(data=list(traces), layout={**common, **layout})


def description(figure: go.Figure) -> str:
    """What a figure of these views shows, in one sentence of plain text: its alternative text."""
    return _plain((figure.layout.meta or {}).get("description", ""))


def as_table(figure: go.Figure) -> pd.DataFrame:
    """The data of a figure as a table, a row per point, bar or cell: the alternative for those who cannot see it.

    Columns: `series`, then the titles of the axes (units included), the title of the colour bar, and what the hover
    text adds. Texts are plain again (not escaped). Decoration is left out.
    """
    rows = [row for trace in figure.data if trace.hoverinfo != "skip" for row in _rows(figure, trace)]
    return pd.DataFrame(rows) if rows else pd.DataFrame({"series": pd.Series(dtype=object)})


def _rows(figure: go.Figure, trace: Any) -> list[dict[str, Any]]:
    across, up = (figure.layout[(trace[f"{a}axis"] or a).replace(a, f"{a}axis")].title.text for a in "xy")
    across, up = _plain(across), _plain(up)
    series, extra = _plain(trace.name), list(trace.meta or ())
    if trace.type == "heatmap":
        amount = _plain(trace.colorbar.title.text)
        return [
            {"series": series, up: _plain(y), across: _plain(x)}
            | ({amount: value} if amount else {})
            | (dict(zip(extra, trace.customdata[row][column], strict=True)) if extra else {})
            for row, (y, values) in enumerate(zip(trace.y, trace.z, strict=True))
            for column, (x, value) in enumerate(zip(trace.x, values, strict=True))
            if not pd.isna(value)
        ]
    data = trace.customdata if extra else [()] * len(trace.x)
    starts = [None] * len(trace.x) if trace.type != "bar" or trace.base is None else trace.base
    rows = []
    for x, y, start, more in zip(trace.x, trace.y, starts, data, strict=True):
        if x is not None:
            place = {across: _plain(x)} if start is None else {f"start of {across}": start, f"length of {across}": x}
            rows.append({"series": series, **place, up: _plain(y), **dict(zip(extra, map(_plain, more), strict=True))})
    return rows


def _plain(value: Any) -> Any:
    return html.unescape(value.replace("<br>", " ")) if isinstance(value, str) else value


def inert(text: str | None) -> str:
    """Text in which nothing is taken for markup or a formula; quotes stay, of which Plotly would show the entities."""
    return html.escape(writable(text or ""), quote=False).replace("$", "&#36;")


def shown(text: Any, limit: int = 40) -> str:
    """Model text as an inert label: white space visible, long text cut."""
    if not isinstance(text, str):
        return ""
    word = visible(text)
    return inert(word if len(word) <= limit else word[: limit - 1] + "…")


def visible(text: str) -> str:
    """Text with marks in the place of white space; four spaces and more are counted."""
    text = re.sub(" {4,}", lambda spaces: f"␣×{len(spaces[0])}", text)
    return text.translate({10: "⏎", 13: "␍", 9: "⇥", 32: "␣"})


def numbers(column: Iterable[Any]) -> list[Any]:
    """Plain values, missing ones as None (a gap in a line)."""
    return [None if pd.isna(value) else value for value in column]


def unit_of(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which a number of bytes reads well: B, KiB, MiB or GiB."""
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024**power:
            return float(1024**power), name
    return 1.0, "B"
