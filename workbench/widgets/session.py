"""A session under the reader's hand, in a notebook."""

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from workbench import conditions, web
from workbench.errors import BadInput, WorkbenchError
from workbench.report.headline import badge
from workbench.session import Session
from workbench.web.data import PHASES
from workbench.widgets.trace import TraceWidget

INTERVAL = 0.1  # seconds between two updates while it decodes
LAST = len(PHASES) - 1


class SessionWidget(TraceWidget):
    """The view of a trace that grows: its transport decodes by phase, token or round, until a condition; it branches.

    Rounds are computed in a thread that an asyncio task of the kernel awaits, so cells and buttons stay usable; what is
    sent is the rounds since the last update, at most every `INTERVAL` seconds. Without a running event loop `step` and
    `run` decode at once.

    Attributes
    ----------
    running: whether it is decoding.
    session: the session shown; `branched`: the one last branched off here, None before that.
    """

    def __init__(self, session: Session, **options: Any):
        self._sessions, self.session, self.branched = [session], session, None
        self._task: asyncio.Task | None = None
        self._sent, self.running, self._pausing, self._message = 0, False, False, ""
        self._turns = count()  # what is sent twice must differ, or it is not sent
        self._phase: int | None = None  # of the last round, as far as it is shown
        super().__init__(session.trace, live=True, **options)

    def step(self, by: str = "round") -> asyncio.Task | None:
        """Decode one round (or move over a recorded one), also one without tokens; its task, where there is a loop.

        by: with "phase", the round is shown phase by phase: the next such step opens its next phase.
        """
        if by == "phase" and self._phase is not None and self._phase < LAST and not self.running:
            self._phase += 1
            self._publish(again=True)
            return self._task
        return self._start(rounds=1, phase=0 if by == "phase" else None)

    def run(self, until: str | None = None) -> asyncio.Task | None:
        """Decode until the end, a pause, or where a condition holds; the task, where there is an event loop.

        Raises BadInput where the condition cannot be read.
        """
        holds = conditions.parse(until) if until and until.strip() else None
        return self._start(rounds=None, holds=holds, until=until or "")

    def pause(self) -> None:
        """Stop after the round that is being decoded."""
        self._pausing = True

    def back(self) -> None:
        """Move the session's cursor one round back; nothing recorded is lost. Ignored while it decodes."""
        if self.session is not None and not self.running:
            self._open(None)
            self.session.back()
            self._publish()

    def fork(self, at: int, token: int | str) -> Session | None:
        """Branch off before the token at that index, with another one there, and show the branch, one round on."""
        if self.session is None or self.running:
            return None
        self.branched = self.session.fork(at=at, token=token)
        self._sessions.append(self.branched)
        self.branched.step()
        self._show(self.branched)
        return self.branched

    def choose(self, number: int) -> None:
        """Show another of the session's branches, 0 for the first. Raises BadInput where there is no such."""
        if not 0 <= number < len(self._sessions):
            raise BadInput(f"there is no run {number}; expected 0 to {len(self._sessions) - 1}")
        if not self.running:
            self._show(self._sessions[number])

    def _show(self, session: Session) -> None:
        self.session, self._trace, self._sent, self._phase = session, session.trace, 0, None
        self._publish()

    def close(self) -> None:
        """Cancel what runs, and let go of sessions, traces and the view."""
        self._sessions, self.session, self.branched, self._pausing = [], None, None, True
        if self._task is not None:
            self._task.cancel()
        self._task = None
        super().close()

    def _start(
        self, rounds: int | None, phase: int | None = None, holds: Callable | None = None, until: str = ""
    ) -> asyncio.Task | None:
        if self.session is None or self.running:
            return self._task
        self._open(phase)
        self.running, self._pausing, self._message = True, False, ""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._decode(rounds, holds, until))
            return None
        self._task = loop.create_task(self._decode(rounds, holds, until))
        return self._task

    def _open(self, phase: int | None) -> None:
        """From now on show the last round up to this phase, None for all of it."""
        if self._phase is not None and self._phase < LAST:
            self._sent = max(0, self._sent - 1)  # the view holds the round so far in part
        self._phase = phase

    async def _decode(self, rounds: int | None, holds: Callable | None, until: str) -> None:
        done, last = 0, 0.0
        try:
            while self.session is not None and not self._pausing and (rounds is None or done < rounds):
                if rounds is None and time.monotonic() - last >= INTERVAL:
                    self._publish()
                    last = time.monotonic()
                number, found = await asyncio.to_thread(self.session.advance, "round", holds, 1)
                if number is None:
                    break
                if found is not None:
                    self._message = f"Stopped where {until}."
                    break
                done += 1
        except Exception as error:  # the person at the buttons has no other place to read it; the trace names it too
            self._message = " ".join(str(error).split()) or type(error).__name__
        finally:
            self.running = False
            self._publish()

    def _publish(self, again: bool = False) -> None:
        """Send what is new since the last time; `again`: the last round, too."""
        if self.session is not None:
            last = self.session.rounds if self._upto is None else self._upto[0] + 1
            self.delta = web.to_json(self._payload(min(max(0, self._sent - again), last - 1 if self._upto else last)))
            self._sent = last

    @property
    def _upto(self) -> tuple[int, int] | None:
        """The round that is shown phase by phase, and how far; None where all is shown."""
        if self.running or self._phase is None or self.session.round is None:
            return None
        return self.session.round, self._phase

    def _payload(self, since: int) -> dict[str, Any]:
        session, upto = self.session, self._upto
        data = web.payload(self._trace, since, session.reader, upto)
        status = {"running": self.running, "message": self._message}
        shown = min(session.cursor, data["length"])  # no more than is shown
        place = {**session.place._asdict(), "token": shown, "at": session.round, "tip": session.at_tip}
        where = {"cursor": shown, "place": place, "selected": None, "follow": True, "status": status}
        names = [{"run": n, "name": chr(65 + n), "on": one is session} for n, one in enumerate(self._sessions)]
        if upto is None and not self.running:
            where["badge"] = badge(self._trace)
        return {**data, **where, "runs": names if len(names) > 1 else [], "turn": next(self._turns)}

    def _received(self, widget: Any, content: dict[str, Any], buffers: list) -> None:
        acts = {
            "step": lambda: self.step(content.get("by", "round")),
            "run": lambda: self.run(content.get("until")),
            "pause": self.pause,
            "back": self.back,
            "fork": lambda: self.fork(content.get("index"), content.get("text") or content.get("token")),
            "choose": lambda: self.choose(content.get("run")),
        }
        act = acts.get(content.get("act"))
        try:
            if act is not None:
                act()
            elif self.session is not None:
                super()._received(widget, content, buffers)
        except WorkbenchError as error:  # said beside the buttons
            self.send({"refused": str(error)})
