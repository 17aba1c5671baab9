"""A visitor of the app without a browser."""

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import workbench.dashboard  # noqa: F401  (before gradio: it switches the analytics off)

import gradio as gr  # isort: skip
from workbench.dashboard.visits import VISITS  # isort: skip
from gradio.state_holder import SessionState  # isort: skip

PROMPT = "def fibonacci(n):"


class Visitor:
    """One page of the app without a browser: holds what the page shows, fires events, takes the updates in."""

    def __init__(self, app: gr.Blocks, name: str = "somebody", empty: bool = True, key: str = "", kept: str = ""):
        self.app, self.name = app, name
        self.session = SessionState(app)
        self.shown: dict[int, Any] = {number: getattr(block, "value", None) for number, block in app.blocks.items()}
        self.props: dict[int, dict[str, Any]] = {}
        self.events = {fn.api_name: fn for fn in app.fns.values()}
        self.view: dict[str, Any] = {}
        self.set("key", key)
        self.set("kept", kept)
        self.fire("loaded")
        if not empty:
            return
        form = VISITS[name].form
        for component in form.components:  # the page opens on a preset
            self.shown[component._id] = form.defaults[id(component)]
        self.fire("forget")

    def fire(self, event: str, data: dict | None = None) -> list[Any]:
        """Fire the event of that name with what the page shows now."""
        fn = self.events[event]
        request = gr.Request(session_hash=self.name)
        event_data = gr.EventData(None, data) if data is not None else None
        self._gather(data)
        inputs = [None if block.stateful else self.shown[block._id] for block in fn.inputs]
        options = {"state": self.session, "request": request, "event_data": event_data}
        with ThreadPoolExecutor(1) as own:  # a browser test may have left a loop running in this thread
            done = own.submit(lambda: asyncio.run(self.app.process_api(fn, inputs, **options))).result()
        for block, value in zip(fn.outputs, done["data"], strict=True):
            self._take(block, value)
        return done["data"]

    def _gather(self, told: dict | None) -> None:
        """What the browser does before an event that takes the form along."""
        if self.name in VISITS:
            values = [self.shown[component._id] for component in VISITS[self.name].form.components]
            self.set("filled", json.dumps({"values": values, "told": told or {}}))

    def _take(self, block: Any, value: Any) -> None:
        number = block._id
        if isinstance(value, dict) and value.get("__type__") == "update":
            self.props.setdefault(number, {}).update(value)
            if "value" in value:
                self.shown[number] = value["value"]
        else:
            self.shown[number] = value
            if block.elem_id == "view":
                self._receive(json.loads(value) if value else {})
            if block.elem_id == "chosen" and value:
                form = VISITS[self.name].form
                values = json.loads(value)["values"]
                self.shown |= {one._id: value for one, value in zip(form.components, values, strict=True)}

    def _receive(self, delta: dict[str, Any]) -> None:
        """What the page holds after a delta, by the contract of `workbench.web.data`; tokens alone."""
        if not delta or delta["since"] == 0:
            self.view = delta
            return
        assert delta["id"] == self.view["id"] and delta["since"] <= self.view["rounds_recorded"]
        before, after = self.view["tokens"], delta["tokens"]
        kept = sum(round < delta["since"] for round in before.get("round", ()))
        joined = {name: before.get(name, [])[:kept] + after.get(name, []) for name in ("text", "kind", "round")}
        self.view = {**self.view, **delta, "tokens": joined}

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

    def choices(self, label: str) -> list[tuple[str, Any]]:
        return self.props[self.find(label)]["choices"]

    def enabled(self, label: str) -> bool:
        return self.props[self.find(label)]["interactive"]

    @property
    def status(self) -> str:
        return re.sub("<[^>]*>", "", self.get("status"))

    @property
    def cursor(self) -> int:
        return self.view["cursor"]

    @property
    def phase(self) -> int | None:
        """Up to which phase the last round is shown; None where it is shown whole."""
        return self.view["phase"]

    @property
    def runs(self) -> list[str]:
        """The names of the runs, the one looked at marked."""
        return [run["name"] + "*" * run["on"] for run in self.view["runs"]]

    @property
    def texts(self) -> list[str]:
        return self.view["tokens"].get("text", [])

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def playing(self) -> bool:
        return bool(self.view) and self.view["status"]["running"]

    def start(self, tokens: int = 12, decoder: str = "autoregressive", prompt: str = PROMPT) -> "Visitor":
        self.set("prompt", prompt)
        self.set("max new tokens", tokens)
        self.set("decoder", decoder)
        self.fire("start")
        return self

    def step(self, by: str = "round") -> "Visitor":
        self.fire("step", {"by": by})
        return self

    def watch(self, seconds: float = 30) -> "Visitor":
        """Look at the run, as the timer does, until it stops."""
        deadline = time.monotonic() + seconds
        while self.playing and time.monotonic() < deadline:
            self.fire("tick")
            time.sleep(0.02)
        assert not self.playing
        return self
