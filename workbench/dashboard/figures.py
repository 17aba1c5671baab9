"""The figures of a run, two a row, each under a sentence and its data as a table."""

import inspect
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from workbench import declare, views
from workbench.dashboard.html import block, inert, number, table
from workbench.dashboard.visits import Visit, guarded
from workbench.declare.registry import KNOWN
from workbench.errors import WorkbenchError
from workbench.experiments.headroom import headroom
from workbench.trace import Trace


def _offered() -> dict[str, tuple[str, dict[str, Any]]]:
    """What the registered views offer, plug-ins last: title -> name of a view, options of its drawing."""
    declare.broken()  # loads the plug-ins
    views_of = {name: getattr(declare.get("view", name), "offers", {}) for name in KNOWN["view"]}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, offers in views_of.items():
        for title, options in offers.items():
            found[f"{title} ({name})" if title in found else title] = (name, options)
    return found


FIGURES = _offered()
PARTS = ("about", "plot")
OUTPUTS = [f"{part}-{place}" for place in range(len(FIGURES)) for part in PARTS]
ROWS = 200  # of a figure's table


def panel() -> None:
    """A place for each figure."""
    with gr.Row(elem_id="plots"):
        for place, title in enumerate(FIGURES):
            with gr.Column(min_width=0, elem_classes="wb-figure"):
                block(f"about-{place}", _about(title, ""))
                gr.Plot(show_label=False, visible=False, elem_id=f"plot-{place}")


@guarded
def drawn(visit: Visit) -> list[Any]:
    """Updates of every place, in the order of `OUTPUTS`; no figure of a round that is shown in part."""
    why = ""
    if not visit.branches or not len((trace := visit.branch.trace).rounds):
        why = "No round yet."
    elif visit.branch.open:
        why = "The last round is shown in part: step it to its end."
    if why:
        return [part for title in FIGURES for part in (_about(title, why), gr.update(visible=False))]
    return [part for title in FIGURES for part in _place(title, trace, visit.round, visit.theme)]


def _place(title: str, trace: Trace, round: int | None, theme: str | None) -> tuple[str, Any]:
    """One figure; where the trace cannot be shown so, the line that says why and what to do instead."""
    name, options = FIGURES[title]
    view = declare.get("view", name)
    at = {"round": round} if "round" in inspect.signature(view).parameters else {}
    try:
        made = view(headroom(trace) if name == "headroom" else trace, theme=theme, **at, **options)  # one draws a table
        return _about(title, views.description(made)) + _data(made), gr.update(value=made, visible=True)
    except Exception as why:  # views of packages too
        said = str(why) if isinstance(why, WorkbenchError) else f"{type(why).__name__}: {why}"
        return _about(title, " ".join(said.split())), gr.update(visible=False)


def _about(title: str, text: str) -> str:
    return f'<h3>{inert(title)}</h3><p class="wb-caption">{inert(text)}</p>'


def _data(figure: go.Figure) -> str:
    """The data of a figure as a table to unfold."""
    data = views.as_table(figure)
    cells = ([number(value) for value in row] for row in data.head(ROWS).itertuples(index=False))
    more = f", the first {ROWS} of {len(data)} rows" if len(data) > ROWS else ""
    shown = table(map(str, data.columns), cells, f"data of the figure{more}")
    return f'<details class="wb-data"><summary>Data table</summary>{shown}</details>'
