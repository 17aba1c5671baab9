"""The figures of a run: one or two plots, what they show in words, and their data as a table."""

import inspect
import textwrap
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
from workbench.views.figure import figure

__all__ = ["FIGURES", "choose", "drawn", "drawn_again", "panel", "words"]


def _offered() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """What the registered views offer, plug-ins last: title -> names of views, each with the options of its drawing."""
    declare.broken()  # loads the plug-ins
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name in KNOWN["view"]:
        for title, options in getattr(declare.get("view", name), "offers", {}).items():
            found.setdefault(title, []).append((name, options))
    return found


FIGURES = _offered()
ROWS = 200  # of a figure's table


def _made(name: str, trace: Trace, round: int | None, theme: str | None) -> list[go.Figure]:
    """The figures of that name; where the trace cannot be shown so, the line that says why and what to do instead."""
    try:
        return [_draw(view, trace, round, theme=theme, **options) for view, options in FIGURES[name]]
    except Exception as why:  # views of packages too
        line = " ".join((str(why) if isinstance(why, WorkbenchError) else f"{type(why).__name__}: {why}").split())
        return [figure(name, trace.id, [], line, theme, "<br>".join(textwrap.wrap(inert(line), 60)))]


def _draw(name: str, trace: Trace, round: int | None, **options: Any) -> go.Figure:
    view = declare.get("view", name)
    at = {"round": round} if "round" in inspect.signature(view).parameters else {}
    return view(headroom(trace) if name == "headroom" else trace, **at, **options)  # that one draws a table


def panel() -> None:
    """The choice of a figure, its plots, its words and its table."""
    names = list(FIGURES)
    gr.Dropdown(names, value=names[0], label="figure", elem_id="figure")
    with gr.Row(elem_id="plots"):
        gr.Plot(show_label=False, elem_id="plot")
        gr.Plot(show_label=False, visible=False, elem_id="plot2")
    block("words")


def drawn(visit: Visit) -> list[Any]:
    """Updates of both plots and the words; none where the page shows them already."""
    if visit.branches and visit.branch.open:  # it would show what the round has not decided yet
        return [gr.skip()] * 3
    if not visit.branches or not len((trace := visit.branch.trace).rounds):
        changed, visit.drawn = visit.drawn is not None, None
        return [None, gr.update(visible=False), ""] if changed else [gr.skip()] * 3
    state = (visit.figure, trace.id, len(trace.rounds), visit.round, visit.theme)
    if state == visit.drawn:
        return [gr.skip()] * 3
    made = _made(visit.figure, trace, visit.round, visit.theme)
    visit.drawn = state
    second = gr.update(value=made[1], visible=True) if len(made) > 1 else gr.update(value=None, visible=False)
    return [made[0], second, "".join(map(words, made))]


def words(figure: go.Figure) -> str:
    """What a figure shows in a sentence, and its data as a table to unfold."""
    data = views.as_table(figure)
    cells = ([number(value) for value in row] for row in data.head(ROWS).itertuples(index=False))
    more = f", the first {ROWS} of {len(data)} rows" if len(data) > ROWS else ""
    shown = table(map(str, data.columns), cells, f"data of the figure{more}")
    about = f'<p class="wb-caption">{inert(views.description(figure))}</p>'
    return f'{about}<details class="wb-data"><summary>Data table</summary>{shown}</details>'


@guarded
def choose(visit: Visit, name: str) -> list[Any]:
    """Another figure."""
    visit.figure, visit.drawn = name if name in FIGURES else "draft tree", None
    return drawn(visit)


@guarded
def drawn_again(visit: Visit) -> list[Any]:
    """The figures as their view is opened: a hidden plot has no width."""
    visit.drawn = None
    return drawn(visit)
