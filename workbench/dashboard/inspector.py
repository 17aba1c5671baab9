"""HTML in which all text is inert; the run's figures as tiles; what might stand in a token's place."""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from workbench.report.headline import headline
from workbench.trace import Trace

__all__ = ["candidates", "figures", "inert", "number", "shown", "table"]

Reader = Callable[[int], str]


def inert(text: Any) -> str:
    """Text in which nothing is markup, for the browser or for a template."""
    safe = html.escape(str(text))
    return safe.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def shown(text: str) -> str:
    """A token as one inert word, white space visible."""
    marks = (("\n", "⏎"), ("\r", "␍"), ("\t", "⇥"), (" ", "␣"))
    for mark, visible in marks:
        text = text.replace(mark, visible)
    return inert(text) or "◦"


def number(value: Any, digits: int = 3) -> str:
    """A value in a cell; "–" where there is none."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.{digits}g}"
    return inert(value)


def table(head: Iterable[str], rows: Iterable[Sequence[str]], caption: str = "", name: str = "wb-rows") -> str:
    """A table of inert cells under inert headings."""
    top = "".join(f'<th scope="col">{inert(one)}</th>' for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    about = f"<caption>{inert(caption)}</caption>" if caption else ""
    return f'<div class="wb-scroll" tabindex="0"><table class="{name}">{about}<tr>{top}</tr>{body}</table></div>'


def figures(trace: Trace) -> str:
    """The run's main figures as a row of tiles."""
    facts = {name: text for name, text in headline(trace).items() if name != "end"}  # the status line says how it ended
    tiles = (f"<div><dt>{inert(name)}</dt><dd>{inert(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="wb-figures">{"".join(tiles)}</dl>'


def candidates(trace: Trace, index: int, text_of: Reader) -> list[tuple[str, int]]:
    """(label, id) of the most likely tokens at a place, best first: p under the raw distribution and under the one
    sampled from, what was taken, and what was cut."""
    row = trace.tokens.iloc[index]
    ids, dist = row["topk_raw"] or [[], []]
    kept = dict(zip(*row["topk_sampled"], strict=True)) if row["topk_sampled"] else None
    found = []
    for place, (token, p) in enumerate(zip(ids, dist, strict=True)):
        sampled = f" → {kept[token]:.3g}" if kept and token in kept else ""
        cut = f", cut by {row['cut_by']}" if kept is not None and token not in kept and row["cut_by"] else ""
        mark = ", taken" if token == row["token_id"] else ""
        found.append((f"{place + 1}. {text_of(int(token))!r}  p {p:.3g}{sampled}{mark}{cut}", int(token)))
    return found
