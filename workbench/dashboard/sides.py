"""Side by side: two runs, where they part, and why."""

from typing import Any

import gradio as gr

from workbench import views
from workbench.dashboard.figures import words
from workbench.dashboard.guard import guarded
from workbench.dashboard.inspector import inert, shown, table
from workbench.dashboard.visit import Branch, Visit
from workbench.errors import BadInput
from workbench.report.headline import headline

__all__ = ["panel", "show"]

BEFORE, AFTER = 400, 200  # tokens shown before and after the place where two runs part


def panel(parts: dict[str, Any]) -> None:
    """Two choices of a run, both texts, the figure, its words and its table."""
    with gr.Row():
        for side, label in (("left", "a"), ("right", "b")):
            parts[side] = gr.Dropdown([], label=f"run {label}", scale=2, min_width=200, elem_id=side)
        parts["beside"] = gr.Button("Show side by side", size="sm", variant="primary", min_width=120, elem_id="beside")
    parts["both"] = gr.HTML(
        '<p class="wb-empty">Choose two runs or branches.</p>', js_on_load=None, apply_default_css=False,
        padding=False, elem_id="both",
    )  # fmt: skip
    parts["diff"] = gr.Plot(show_label=False, visible=False, elem_id="diff")
    parts["diff_words"] = gr.HTML("", js_on_load=None, apply_default_css=False, padding=False, elem_id="diff-words")


@guarded
def show(visit: Visit, left: int | None, right: int | None) -> tuple:
    """Both texts with the first difference marked, and the figure."""
    known = range(len(visit.branches))
    if left not in known or right not in known:
        raise BadInput("choose two runs or branches to see side by side; a step or an opened trace makes one")
    a, b = visit.branches[left], visit.branches[right]
    diff, drawn = views.branch_diff(a.trace, b.trace, theme=visit.theme)
    parts = "The texts are the same." if diff.index is None else f"They part at token {diff.index}: {diff.cause}."
    columns = "".join(_side(one, name, diff) for one, name in ((a, "a"), (b, "b")))
    said = f'<p class="wb-verdict"><b>{inert(parts)}</b> {inert(diff.detail)}</p>'
    rows = [(inert(name), inert(old), inert(new)) for name, (old, new) in diff.settings.items()]
    settings = table(("setting", "a", "b"), rows, "what was set differently") if rows else ""
    html = f'{said}<div class="wb-sides">{columns}</div>{_facts(a, b)}{settings}'
    return html, gr.update(value=drawn, visible=True), words(drawn)


def _side(branch: Branch, name: str, diff: Any) -> str:
    tokens = diff.tokens
    texts = [text for text in tokens[f"text_{name}"] if isinstance(text, str)]
    at = len(texts) if diff.index is None else min(diff.index, len(texts))
    start = max(0, at - BEFORE)
    before, after = "".join(texts[start:at]), "".join(texts[at + 1 : at + AFTER])
    first = f'<mark aria-label="first difference">▸{shown(texts[at])}</mark>' if at < len(texts) else ""
    if diff.index is not None and at >= len(texts):
        first = "<mark>▸ended here</mark>"
    lead = "…" if start else ""
    return (
        f'<section aria-label="run {name}"><h4>{name} · {inert(branch.label)}</h4>'
        f'<pre><span class="wb-same">{lead}{inert(before)}</span>{first}{inert(after)}</pre></section>'
    )


def _facts(a: Branch, b: Branch) -> str:
    """The main figures of both runs."""
    both = [headline(one.trace) for one in (a, b)]
    rows = [(inert(name), inert(both[0][name]), inert(both[1][name])) for name in both[0]]
    return table(("figure", "a", "b"), rows, "both runs")
