"""The view of a trace as a Jupyter widget."""

import base64
import html
from typing import Any

import anywidget
import traitlets

from workbench import views, web
from workbench.trace import Trace
from workbench.views.static import svg


class TraceWidget(anywidget.AnyWidget):
    """Token view, timeline, inspector and transport over a recorded trace; stepping happens in the browser.

    Attributes
    ----------
    cursor: index of the token under the glass, -1 before there is one; set it to move the view. Tokens of a prompt
        whose distributions were recorded (`prompt_rows`) count from -1 down.
    picked: index of the token last picked with Enter or a double click, -1 before that; observe it to act on it.

    Where no kernel runs, a saved notebook shows the text with underlines and shades over the four signals.
    """

    _esm = web.module() + web.script("widget.js")
    _css = web.css()
    delta = traitlets.Unicode("", help="JSON of the rounds last added; see workbench.web.data").tag(sync=True)
    live = traitlets.Bool(False, help="whether there are buttons that decode").tag(sync=True)
    cursor = traitlets.Int(-1, help="index of the token under the glass").tag(sync=True)
    picked = traitlets.Int(-1, help="index of the token last picked").tag(sync=True)

    def __init__(self, trace: Trace, **options: Any):
        self._trace: Trace | None = trace
        super().__init__(**options)
        self.on_msg(self._received)

    def _received(self, widget: Any, content: dict[str, Any], buffers: list) -> None:
        if content.get("act") == "all" and self._trace is not None:
            self.send({"all": web.to_json(self._payload(0))})

    def _payload(self, since: int) -> dict[str, Any]:
        return web.payload(self._trace, since)

    def close(self) -> None:
        """Let go of the trace and of the view. The saved output stays readable."""
        self._trace = None
        super().close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'closed' if self._trace is None else repr(self._trace)})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        data["text/plain"] = repr(self)
        if self._trace is not None:
            data["text/html"] = web.plain(self._trace) + _drawing(self._trace)
        return bundle or data


def _drawing(trace: Trace) -> str:
    """The four signals as an image: JupyterLab strips inline SVG from notebooks that it does not trust."""
    figure = views.signals(trace)
    image = base64.b64encode(svg(figure).encode()).decode()
    return f'<img alt="{html.escape(views.description(figure))}" src="data:image/svg+xml;base64,{image}">'
