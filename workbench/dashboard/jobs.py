"""What decodes or loads in a thread of its own: whoever watches it only reads."""

import threading

from workbench.dashboard.limits import LONG, Turn
from workbench.dashboard.visits import Branch, Holds, one_line


class Job(threading.Thread):
    """Work in a thread of its own, for which it takes a turn. A kind of job says in `work` what it does.

    who: the visitor whose it is; None where it decodes nothing and takes no turn. error: the line that says why it
    failed.
    """

    def __init__(self, name: str, who: str | None = ""):
        super().__init__(daemon=True, name=name)
        self.error, self.turn = "", None if who is None else Turn(who)
        self._halt = threading.Event()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return not self.is_alive()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        if self.turn is not None:
            self.turn.take()
        super().start()

    def stop(self) -> None:
        """End after the step under way."""
        self._halt.set()

    def work(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:  # noqa: BLE001  (work that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            if self.turn is not None:
                self.turn.give()


class Worker(Job):
    """Moves one branch on until it ends, a condition holds or it is stopped.

    pace: seconds between two steps, in which others have its turn. until: the condition as text. found: it held.
    """

    def __init__(self, branch: Branch, by: str, pace: float, holds: Holds | None = None, who: str = ""):
        super().__init__(f"decoding {branch.label}", who)
        self.branch, self.by, self.pace, self.holds = branch, by, pace, holds
        self.until, self.found = getattr(holds, "text", ""), False

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        self.turn.take()
        self.branch.decoding = True
        threading.Thread.start(self)

    def stop(self) -> None:
        """End after the step under way, and wait for that."""
        super().stop()
        if self.is_alive():
            self.join()

    def work(self) -> None:
        try:
            while not self._halt.is_set():
                moved, self.found = self.branch.advance(self.by, self.holds)
                if not moved or self.found or self.branch.done:
                    return
                if self.turn.over:
                    self.error = LONG
                    return
                if self.pace:
                    self.turn.rest(self.pace, self._halt)
        finally:
            self.branch.decoding = False
