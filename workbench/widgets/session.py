"""A session under the reader's hand, in a notebook."""

import asyncio
import time
from typing import Any

from workbench import web
from workbench.session import Session
from workbench.widgets.trace import TraceWidget

__all__ = ["SessionWidget"]

INTERVAL = 0.1  # seconds between two updates while it decodes


class SessionWidget(TraceWidget):
    """The view of a trace that grows, with buttons that decode: Step, Run, Pause and Back act on the session.

    Rounds are computed in a thread that an asyncio task of the kernel awaits, so cells and buttons stay usable; what is
    sent is the rounds since the last update, at most every `INTERVAL` seconds. Without a running event loop `step` and
    `run` decode at once. running: whether it is decoding.
    """

    def __init__(self, session: Session, **options: Any):
        self._session: Session | None = session
        self._task: asyncio.Task | None = None
        self._sent, self.running, self._pausing, self._message = 0, False, False, ""
        super().__init__(session.trace, live=True, **options)

    def step(self) -> asyncio.Task | None:
        """Decode one round (or move over a recorded one), also one without tokens; its task, where there is a loop."""
        return self._start(rounds=1)

    def run(self) -> asyncio.Task | None:
        """Decode until the end or a pause; the task that does it, where there is an event loop."""
        return self._start(rounds=None)

    def pause(self) -> None:
        """Stop after the round that is being decoded."""
        self._pausing = True

    def back(self) -> None:
        """Move the session's cursor one round back; nothing recorded is lost. Ignored while it decodes."""
        if self._session is not None and not self.running:
            self._session.back()
            self._publish()

    def close(self) -> None:
        """Cancel what runs, and let go of session, trace and view."""
        self._session, self._pausing = None, True
        if self._task is not None:
            self._task.cancel()
        self._task = None
        super().close()

    def _start(self, rounds: int | None) -> asyncio.Task | None:
        if self._session is None or self.running:
            return self._task
        self.running, self._pausing, self._message = True, False, ""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._decode(rounds))
            return None
        self._task = loop.create_task(self._decode(rounds))
        return self._task

    async def _decode(self, rounds: int | None) -> None:
        done, last = 0, 0.0
        try:
            while self._session is not None and not self._pausing and (rounds is None or done < rounds):
                if time.monotonic() - last >= INTERVAL:
                    self._publish()
                    last = time.monotonic()
                if await asyncio.to_thread(self._session.step) is None:
                    break
                done += 1
        except Exception as error:  # the person at the buttons has no other place to read it; the trace names it too
            self._message = " ".join(str(error).split()) or type(error).__name__
        finally:
            self.running = False
            self._publish()

    def _publish(self) -> None:
        """Send what is new since the last time."""
        if self._session is not None:
            self.delta = web.to_json(self._payload(self._sent))
            self._sent = self._session.rounds

    def _payload(self, since: int) -> dict[str, Any]:
        session = self._session
        data = web.payload(self._trace, since, session.reader)
        status = {"running": self.running, "ended": session.ended, "message": self._message}
        place = {**session.place._asdict(), "at": session.round, "tip": session.at_tip}
        return {**data, "cursor": session.cursor, "place": place, "selected": None, "follow": True, "status": status}

    def _received(self, widget: Any, content: dict[str, Any], buffers: list) -> None:
        act = {"step": self.step, "run": self.run, "pause": self.pause, "back": self.back}.get(content.get("act"))
        if act is not None:
            act()
        elif self._session is not None:
            super()._received(widget, content, buffers)
