"""The app: Gradio panels over `Session` and traces. They draw; they never decode."""

import importlib
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # has to be there before gradio is imported

__all__ = ["build_app", "launch"]

_HOMES = {"build_app": "app", "launch": "serve"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench.dashboard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"workbench.dashboard.{_HOMES[name]}"), name)
