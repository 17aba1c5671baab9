"""A visitor of the app without a browser."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import workbench.dashboard  # noqa: F401  (before gradio: it switches the analytics off)

import gradio as gr  # isort: skip
from gradio.state_holder import SessionState  # isort: skip

PROMPT = "def fibonacci(n):"


class Visitor:
    """One page of the app without a browser: holds what the page shows, fires events, takes the updates in."""

    def __init__(self, app: gr.Blocks, name: str = "somebody"):
        self.app, self.name = app, name
        self.session = SessionState(app)
        self.shown: dict[int, Any] = {number: getattr(block, "value", None) for number, block in app.blocks.items()}
        self.props: dict[int, dict[str, Any]] = {}
        self.events = {fn.api_name: fn for fn in app.fns.values()}
        self.fire("loaded")

    def fire(self, event: str, data: dict | None = None) -> list[Any]:
        """Fire the event of that name with what the page shows now."""
        fn = self.events[event]
        request = gr.Request(session_hash=self.name)
        event_data = gr.EventData(None, data) if data is not None else None
        inputs = [None if block.stateful else self.shown[block._id] for block in fn.inputs]
        options = {"state": self.session, "request": request, "event_data": event_data}
        with ThreadPoolExecutor(1) as own:  # a browser test may have left a loop running in this thread
            done = own.submit(lambda: asyncio.run(self.app.process_api(fn, inputs, **options))).result()
        for block, value in zip(fn.outputs, done["data"], strict=True):
            self._take(block._id, value)
        return done["data"]

    def _take(self, number: int, value: Any) -> None:
        if isinstance(value, dict) and value.get("__type__") == "update":
            self.props.setdefault(number, {}).update(value)
            if "value" in value:
                self.shown[number] = value["value"]
        else:
            self.shown[number] = value

    def find(self, label: str, info: str = "") -> int:
        """The number of the component with that element id, label (and info) or button text."""
        found = {
            number: (getattr(block, "elem_id", None), getattr(block, "label", None), getattr(block, "value", None))
            for number, block in self.app.blocks.items()
            if info in (getattr(block, "info", None) or "")
        }
        for place in range(3):
            for number, names in found.items():
                if names[place] == label and (place < 2 or isinstance(self.app.blocks[number], gr.Button)):
                    return number
        raise KeyError(label)

    def set(self, label: str, value: Any) -> None:
        self.shown[self.find(label)] = value

    def get(self, label: str) -> Any:
        return self.shown[self.find(label)]

    @property
    def figures(self) -> str:
        return next(value for value in self.shown.values() if str(value).startswith('<dl class="wb-figures">'))

    def enabled(self, label: str) -> bool:
        return self.props[self.find(label)]["interactive"]

    @property
    def strip(self) -> dict[str, Any]:
        return json.loads(self.get("strip"))

    @property
    def text(self) -> str:
        return "".join(self.strip["text"])

    @property
    def playing(self) -> bool:
        return next(self.props[n]["active"] for n, block in self.app.blocks.items() if isinstance(block, gr.Timer))

    def start(self, tokens: int = 12, decoder: str = "autoregressive", prompt: str = PROMPT) -> "Visitor":
        self.set("prompt", prompt)
        self.set("max new tokens", tokens)
        self.set("decoder", decoder)
        self.fire("start")
        return self
