"""What every handler goes through: the visit's lock, and errors as one line."""

import traceback
from functools import wraps
from typing import Any

import gradio as gr

from workbench.dashboard.inspector import inert
from workbench.dashboard.run import one_line
from workbench.dashboard.visit import Visit
from workbench.errors import WorkbenchError

__all__ = ["LOADING", "failed", "guarded"]

LOADING = "the page is not ready; try again in a moment, or reload it if it was left for long"


def guarded(handler):
    """Hold the visit's lock; turn whatever goes wrong into one line. Only what nobody expected is printed in full."""

    @wraps(handler)
    def guard(visit: Visit | None, *values, **named):
        if visit is None:
            raise gr.Error(LOADING, print_exception=False)
        with visit.lock:
            visit.hear()
            try:
                return handler(visit, *values, **named)
            except gr.Error:
                raise
            except Exception as error:
                if not isinstance(error, (WorkbenchError, MemoryError)):
                    traceback.print_exc()
                visit.message = one_line(error)
                raise gr.Error(inert(visit.message), print_exception=False) from error

    return guard


def failed(visit: Visit | None) -> Any:
    """After an error: the status line says it."""
    return inert(visit.message if visit else LOADING)
