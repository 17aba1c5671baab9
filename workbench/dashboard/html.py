"""HTML in which all text is inert: places, buttons, lines and tables."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from workbench.views.figure import visible

LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"


def block(elem_id: str, value: str = "", live: bool = False, **more: Any) -> gr.HTML:
    """A place for HTML on the page; `live` has its changes read out."""
    script = LIVE if live else None
    return gr.HTML(value, elem_id=elem_id, padding=False, apply_default_css=False, js_on_load=script, **more)


def button(name: str, label: str, width: int | None = 80, **more: Any) -> None:
    """A small button."""
    gr.Button(label, elem_id=name, min_width=width, **{"size": "sm", **more})


def line(text: str, done: int = 0, of: int = 0) -> str:
    """A line that says how far something is, behind a bar where it is known how much there is."""
    bar = f'<progress max="{of}" value="{done}" aria-label="how far it is"></progress>' if of else ""
    return f'<p class="wb-progress">{bar}{inert(text)}</p>'


def badge(text: str, tip: str = "", caution: bool = False) -> str:
    """A word with a border; its tooltip says how it is checked."""
    return f'<span class="wb-badge{" wb-caution" if caution else ""}" title="{inert(tip)}">{inert(text)}</span>'


def inert(text: Any) -> str:
    """Text in which nothing is markup, for the browser or for a template."""
    safe = html.escape(str(text))
    return safe.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def shown(text: str) -> str:
    """A token as one inert word, white space visible."""
    return inert(visible(text)) or "◦"


def number(value: Any, digits: int = 3) -> str:
    """A value in a cell; "–" where there is none."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.{digits}g}"
    return inert(value)


def table(head: Iterable[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of inert cells under inert headings."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    about = f"<caption>{inert(caption)}</caption>" if caption else ""
    return (
        f'<div class="wb-scroll" tabindex="0"><table class="wb-rows">{about}<tr>{heads(head)}</tr>{body}</table></div>'
    )


def heads(names: Iterable[str]) -> str:
    return "".join(f'<th scope="col">{inert(name)}</th>' for name in names)
