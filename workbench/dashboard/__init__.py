"""The app: Gradio panels over `Session` and traces. They draw; they never decode."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # has to be there before gradio is imported

__all__ = ["build_app", "launch"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'workbench.dashboard' has no attribute {name!r}")
    from workbench.dashboard import app

    return getattr(app, name)
