"""The view of a trace in Gradio: the module of `workbench.web`, wrapped; and the JSON text it draws."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any

import gradio as gr

from workbench import web
from workbench.trace import Trace

__all__ = ["WEB", "payload", "script", "trace_view"]

WEB = web.FOLDER
PARTS = ("transport", "tokens", "timeline", "inspector", "table")
SETTLED = 150  # ms that the cursor rests on a token before the server hears of it
BEAT, AWAY = 150, 1000  # ms between two looks at a run that is being decoded, and where the server did not answer

_turns = count()


@cache
def script(parts: Sequence[str] = PARTS) -> str:
    """The module as the body of a function, mounted on the component's element.

    The cursor, once it rests, is told to the server as a `pick` event, with the index of its token; `lost` says that
    rounds are missing before those that came last. While the run is decoded (`live`), the script asks for what is new;
    once it no longer is, `rest` asks for the whole page. The block keeps its names apart from the module's.
    """
    options = f"parts: {json.dumps(parts)}, css: {json.dumps(web.css())}"
    return f"""{web.module(export=False)}
{{
  let resting = null, page = null, turn = 0, drawn = {{}};
  const told = (index, wait) => {{
    clearTimeout(resting);
    resting = setTimeout(() => trigger('pick', {{ index }}), wait);
  }};
  const view = mount(element, {{ {options}, onCursor: (i) => told(i, {SETTLED}), onPick: (i) => told(i, 0) }});
  const draw = (data) => {{
    const fits = view.update(data);
    const {{ id: run, rounds_recorded: rounds, cursor, phase }} = data;
    drawn = fits ? {{ run, rounds, cursor, phase: phase ?? '' }} : {{}};
    return fits;
  }};
  const look = async () => {{
    const mine = turn;
    let found = {{}}, wait = {BEAT};
    try {{
      found = await (await fetch(`live/${{page}}?${{new URLSearchParams(drawn)}}`)).json();
    }} catch {{ // Gradio's own event says that nobody answers, and comes back with the server
      if (mine === turn) trigger('rest', {{}});
      return;
    }}
    if (mine !== turn) return;
    if (found.id !== undefined) draw(found);
    if (found.rest) {{
      trigger('rest', {{}});
      wait = {AWAY};
    }}
    setTimeout(() => mine === turn && look(), wait);
  }};
  const show = () => {{
    turn += 1;
    const data = props.value ? JSON.parse(props.value) : {{}};
    page = data.live ?? null;
    if (props.value && !draw(data)) trigger('lost', {{}});
    if (page !== null) look();
  }};
  watch('value', show);
  show();
}}
"""


def trace_view(parts: Sequence[str] = PARTS, elem_id: str = "view") -> gr.HTML:
    """The component; its value is what `payload` returns. Its `pick` event carries the index of a token.

    parts: which of `PARTS` to draw, in that order.
    """
    code = script(tuple(parts))
    return gr.HTML(value="", html_template="", js_on_load=code, apply_default_css=False, padding=False, elem_id=elem_id)


def payload(trace: Trace, place: Mapping[str, Any], since: int = 0, text_of: Callable[[int], str] | None = None) -> str:
    """The rounds of a trace from `since` on as JSON text: `workbench.web.payload`, and where the visitor is.

    place: `cursor`: tokens before the run's cursor; `selected`: the token inspected; `follow`: scroll to it; `phase`:
    the one shown; `live`: the page's name while its run is being decoded. Every text is another one (`turn`), so that
    the page, whose cursor may have moved since, takes notice of it.
    """
    return web.to_json({**web.payload(trace, since, text_of), **place, "turn": next(_turns)})
