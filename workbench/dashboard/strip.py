"""The view of a trace in Gradio: the module of `workbench.web`, wrapped; and the JSON text it draws."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count

import gradio as gr

from workbench import web
from workbench.trace import Trace

__all__ = ["WEB", "payload", "script", "trace_view"]

WEB = web.FOLDER
PARTS = ("transport", "strip", "clock", "inspector", "table")
SETTLED = 150  # ms that the cursor rests on a token before the server hears of it

_turns = count()


@cache
def script(parts: Sequence[str] = PARTS) -> str:
    """The module as the body of a function, mounted on the component's element.

    The cursor, once it rests, is told to the server as a `pick` event, with the index of its token; `lost` says that
    rounds are missing before those that came last.
    """
    options = f"parts: {json.dumps(parts)}, css: {json.dumps(web.css())}"
    return f"""{web.module(export=False)}
let resting = null;
const told = (index, wait) => {{
  clearTimeout(resting);
  resting = setTimeout(() => trigger('pick', {{ index }}), wait);
}};
const view = mount(element, {{ {options}, onCursor: (i) => told(i, {SETTLED}), onPick: (i) => told(i, 0) }});
const show = () => {{ if (props.value && !view.update(JSON.parse(props.value))) trigger('lost', {{}}); }};
watch('value', show);
show();
"""


def trace_view(parts: Sequence[str] = PARTS, elem_id: str = "view") -> gr.HTML:
    """The component; its value is what `payload` returns, its `pick` event carries the index of a token.

    parts: which of `PARTS` to draw, in that order.
    """
    code = script(tuple(parts))
    return gr.HTML(value="", html_template="", js_on_load=code, apply_default_css=False, padding=False, elem_id=elem_id)


def payload(
    trace: Trace,
    cursor: int,
    selected: int | None,
    follow: bool = False,
    since: int = 0,
    text_of: Callable[[int], str] | None = None,
) -> str:
    """The rounds of a trace from `since` on as JSON text: `workbench.web.payload`, and where the visitor is.

    cursor: tokens before the run's cursor. selected: the token inspected. follow: scroll to it. Every text is another
    one (`turn`), so that the page, whose cursor may have moved since, takes notice of it.
    """
    place = {"cursor": cursor, "selected": selected, "follow": follow, "turn": next(_turns)}
    return web.to_json({**web.payload(trace, since, text_of), **place})
