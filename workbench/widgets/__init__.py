"""Jupyter widgets: the view of a trace, and of a session that is decoding. They draw; they never decode themselves."""

from workbench.widgets.session import SessionWidget
from workbench.widgets.trace import TraceWidget

__all__ = ["SessionWidget", "TraceWidget"]
