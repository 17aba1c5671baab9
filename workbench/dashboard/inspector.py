"""One token under the glass, and the run's figures, as HTML in which all text is inert."""

import html
from collections.abc import Callable
from typing import Any

import pandas as pd

from workbench.headline import headline
from workbench.trace import Trace
from workbench.views.palette import colour

__all__ = ["candidates", "figures", "inert", "inspect"]

Reader = Callable[[int], str]
FACTS = (  # column, label, unit
    ("p_raw", "p, raw law", ""), ("p_sampled", "p, sampled law", ""), ("rank", "rank", ""),
    ("surprisal_nats", "surprisal", "nats"), ("entropy_raw_nats", "entropy, raw", "nats"),
    ("entropy_sampled_nats", "entropy, sampled", "nats"), ("varentropy_nats2", "varentropy", "nats²"),
    ("margin", "margin p1 − p2", ""), ("keep_size", "tokens left", ""), ("cut_by", "cut by", ""),
    ("decision", "decision", ""),
)  # fmt: skip


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


def number(value: Any, digits: int = 4) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else inert(value)


def figures(trace: Trace) -> str:
    """The run's main figures as a row of tiles."""
    facts = {name: text for name, text in headline(trace).items() if name != "end"}  # the status line says how it ended
    tiles = (f"<div><dt>{inert(name)}</dt><dd>{inert(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="wb-figures">{"".join(tiles)}</dl>'


def candidates(trace: Trace, index: int, text_of: Reader) -> list[tuple[str, int]]:
    """(label, id) of the most likely tokens at a place, best first; the one that was taken is marked."""
    row = trace.tokens.iloc[index]
    law = row["topk_raw"] or [[], []]
    taken = row["token_id"]
    return [
        (f"{i + 1}. {text_of(token)!r}  p = {p:.3g}{'  (taken)' if token == taken else ''}", int(token))
        for i, (token, p) in enumerate(zip(*law, strict=True))
    ]


def inspect(trace: Trace, index: int | None, text_of: Reader) -> str:
    """Everything known about one token: figures, candidates of both laws, and the drafts of its round."""
    if index is None:
        return '<p class="wb-empty">No token yet. After a step, click one above, or walk with the arrow keys.</p>'
    row = trace.tokens.iloc[index]
    place = f"token {index} at position {row['position']}, round {row['round']}"
    head = f'<p class="wb-token-head"><code>{shown(row["text"] or "")}</code> <span>{inert(place)}</span><br>'
    head += f"from <b>{inert(row['source'] or 'unknown')}</b>, law of {inert(row['model'] or '–')},"
    head += f" id {row['token_id']}</p>"
    cells = (
        f"<div><dt>{label}</dt><dd>{number(row[column])} {unit}</dd></div>"
        for column, label, unit in FACTS
        if number(row[column]) != "–"
    )
    return f'{head}<dl class="wb-facts">{"".join(cells)}</dl>{_laws(row, text_of)}{_drafts(trace, int(row["round"]))}'


def _laws(row: pd.Series, text_of: Reader) -> str:
    columns = [("raw law", row["topk_raw"]), ("sampled from", row["topk_sampled"])]
    tables = []
    for title, law in columns:
        if not law:
            continue
        lines = []
        for token, p in zip(*law, strict=True):
            taken = ' class="wb-taken"' if token == row["token_id"] else ""
            bar = f'<span class="wb-p" style="width:{100 * (p or 0):.1f}%"></span>'
            word, mark = shown(text_of(int(token))), " ✓" if taken else ""
            lines.append(f"<tr{taken}><td><code>{word}</code>{mark}</td><td>{bar}</td><td>{number(p, 3)}</td></tr>")
        tables.append(f"<table class='wb-law'><caption>{title}</caption>{''.join(lines)}</table>")
    if len(tables) == 1 and row["cut_by"] == "greedy":
        tables.append('<p class="wb-empty">temperature 0 takes the first</p>')
    return f'<div class="wb-laws">{"".join(tables)}</div>' if tables else ""


def _drafts(trace: Trace, round: int) -> str:
    nodes = trace.drafts[trace.drafts["round"] == round]
    if nodes.empty:
        return f'<p class="wb-empty">Round {round} drafted nothing.</p>'
    lines = []
    for node in nodes.itertuples():
        fate = node.fate or "–"
        dot = f'<span class="wb-dot" style="background:{colour("fate", fate)}"></span>'
        why = f"{fate.replace('_', ' ')}{f': {node.reason}' if node.reason else ''}"
        word = f"<code>{shown(node.text or '')}</code>"
        cells = (node.node, number(node.parent), word, number(node.q, 2), number(node.p, 2), f"{dot}{inert(why)}")
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("node", "after", "token", "q", "p", "fate"))
    caption = f"drafted in round {round} by {inert(nodes['drafter'].iloc[0] or 'unknown')}"
    return f'<table class="wb-drafts"><caption>{caption}</caption><tr>{head}</tr>{"".join(lines)}</table>'
