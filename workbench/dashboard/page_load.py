"""A page is opened, filled from a preset, or closed."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from workbench.dashboard import panel as page
from workbench.dashboard.form import Form
from workbench.dashboard.inspector import inert
from workbench.dashboard.pages import client_of
from workbench.dashboard.presets import presets
from workbench.dashboard.visit import VISITS, Visit

__all__ = ["closed", "loader", "preset"]


def loader(limited: bool) -> Callable:
    """What a page fires as it is opened. limited: its visitor shares the app with others."""

    def loaded(theme: str | None, request: gr.Request) -> tuple:
        """A page was opened: a visit of its own."""
        client = client_of(getattr(request.request, "scope", {})) if limited else ""
        known = theme if theme in ("light", "dark") else None
        visit = Visit(request.session_hash or "", client, theme=known)
        VISITS[visit.name] = visit
        ready = gr.update(interactive=True)
        return visit, ready, ready, *page.panel(visit)

    return loaded


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
