"""A comparison of decoders and cache stacks, decoded by a worker; whoever watches it only reads."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.dashboard.run import LONG, Turn, one_line
from workbench.decoders import Autoregressive
from workbench.engine.model import LanguageModel
from workbench.experiments.compare import Arm, Comparison

__all__ = ["BASELINE", "Trial"]

BASELINE = "plain"


class Trial(threading.Thread):
    """A `Comparison` of arms with plain decoding over the full cache, in a thread of its own.

    over: whether it has ended. who: the visitor whose it is. error: the line that says why it failed.
    Raises BadInput, before any work, where a prompt, an arm or a setting does not fit.
    """

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Any], arms: Mapping[str, Arm], who: str = "", **settings: Any
    ):
        super().__init__(daemon=True, name="comparison")
        self.lm, self.settings = lm, settings
        own = {name: value for name, value in settings.items() if name != "cache"}  # every arm has its own
        self.comparison = Comparison(lm, prompts, {BASELINE: Arm(Autoregressive()), **arms}, gaps=True, **own)
        self.error, self.turn = "", Turn(who)
        self._rows: tuple[int, list[dict[str, Any]]] = (0, [])  # prompts in it, the rows
        self._halt = threading.Event()

    @property
    def over(self) -> bool:
        return not self.is_alive()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        self.turn.take()
        super().start()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the comparison, made again only where a prompt more is finished."""
        finished = len(self.comparison.found)
        if finished != self._rows[0]:
            self._rows = (finished, self.comparison.rows())
        return self._rows[1]

    def stop(self) -> None:
        """End after the round under way; the prompts that are finished stay."""
        self._halt.set()

    def run(self) -> None:
        try:
            for _ in self.comparison:
                if self.turn.over:
                    self.error = LONG
                if self._halt.is_set() or self.error:
                    break
        except Exception as error:  # noqa: BLE001  (a comparison that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            self.turn.give()
