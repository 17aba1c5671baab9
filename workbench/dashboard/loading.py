"""Models that a page waits for: how far their loading is, and a way to stop it."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from workbench.dashboard.form import Form, Wanted
from workbench.dashboard.guard import LOADING
from workbench.dashboard.inspector import inert
from workbench.dashboard.run import one_line
from workbench.dashboard.visit import Visit
from workbench.errors import BadInput
from workbench.models.progress import Cancelled

__all__ = ["Loading", "outputs", "panel", "stop", "wait"]

QUICK_S, BEAT_S = 0.3, 0.4  # what needs no word; between two looks


class Loading(threading.Thread):
    """The models that a run needs, on their way into memory. line: how far; error: the line that says why not."""

    def __init__(self, wanted: Wanted):
        super().__init__(daemon=True, name=f"loading {wanted.model}")
        self.wanted, self.error = wanted, ""
        self.line = f"loading {wanted.model} …"
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            self.wanted.load_all(self._tell)
        except Exception as error:  # noqa: BLE001  (a model that cannot be loaded is said, and harms nothing else)
            self.error = one_line(error)

    def stop(self) -> None:
        """End it at the next bytes."""
        self._halt.set()

    def _tell(self, name: str, step: str, done: int, total: int) -> None:
        if self._halt.is_set():
            raise Cancelled(f"the loading of {name} was stopped")
        unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
        digits = 1 if total < 10 * size else 0
        self.line = f"{step} {name}, {done / size:.{digits}f} of {total / size:.{digits}f} {unit}"


def panel(parts: dict[str, Any]) -> None:
    """The line that says how far it is, and the button that stops it; both hidden while nothing is loaded."""
    live = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
    plain = {"apply_default_css": False, "padding": False, "visible": False}
    parts["loading"] = gr.HTML("", js_on_load=live, elem_id="loading", **plain)
    parts["cancel"] = gr.Button("Cancel", size="sm", min_width=90, visible=False, elem_id="cancel")


def outputs(parts: dict[str, Any]) -> list[Any]:
    """The components that `wait` updates."""
    return [parts["loading"], parts["cancel"]]


def wait(visit: Visit | None, form: Form, *values: Any) -> Iterator[tuple]:
    """Say how far the loading of the form's models is, until they are there. At once where nothing has to be loaded."""
    if visit is None:
        raise gr.Error(LOADING, print_exception=False)
    try:
        wanted = form.read(values)
    except BadInput:  # what comes next says so
        yield _shown("")
        return
    with visit.lock:
        if visit.loading is not None and visit.loading.is_alive():
            raise gr.Error("a model is being loaded already; cancel that first", print_exception=False)
        loading = visit.loading = Loading(wanted)
        loading.start()
    loading.join(QUICK_S)
    while loading.is_alive():
        visit.hear()
        yield _shown(loading.line)
        loading.join(BEAT_S)
    yield _shown("")
    if loading.error:
        visit.message = loading.error
        raise gr.Error(inert(loading.error), print_exception=False)


def stop(visit: Visit | None) -> None:
    """Stop what the page waits for."""
    if visit is not None and visit.loading is not None:
        visit.loading.stop()


def _shown(line: str) -> tuple:
    said = f'<p class="wb-progress">{inert(line)}</p>' if line else ""
    return gr.update(value=said, visible=bool(line)), gr.update(visible=bool(line))
