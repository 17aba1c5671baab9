"""A page is opened, filled from a preset, or closed."""

from typing import Any

import gradio as gr

from workbench.dashboard import panel as page
from workbench.dashboard.form import Form
from workbench.dashboard.inspector import inert
from workbench.dashboard.presets import presets
from workbench.dashboard.visit import VISITS, Visit

__all__ = ["closed", "loaded", "preset"]


def loaded(theme: str | None, request: gr.Request) -> tuple:
    """A page was opened: a visit of its own."""
    visit = Visit(request.session_hash or "", theme=theme if theme in ("light", "dark") else None)
    VISITS[visit.name] = visit
    ready = gr.update(interactive=True)
    return visit, ready, ready, *page.panel(visit)


def closed(request: gr.Request) -> None:
    """A page was closed: let go of its runs."""
    visit = VISITS.pop(request.session_hash or "", None)
    if visit is not None:
        visit.close()


def preset(form: Form, name: str | None) -> list[Any]:
    """What to look at, and the form's values."""
    chosen = presets().get(name or "")
    if chosen is None:
        return [""] + [gr.skip()] * len(form.components)
    values = form.values(chosen.prompt, chosen.decoder, chosen.cache, chosen.settings)
    return [f'<p class="wb-look"><b>{inert(name)}.</b> {inert(chosen.look)}</p>', *values]
