"""A gate: when a controller acts. It compares a signal with a threshold, and remembers what it did."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from workbench.control import signals
from workbench.declare import Declared, setting
from workbench.errors import BadInput

HEARD = 512  # values, of which a running quantile is


class Reading(NamedTuple):
    """What a controller read: a signal's `value`, and what was compared with the threshold, which is its `mean` where
    there is a window; whether its gate is `open` now, and whether that has `changed`."""

    signal: str
    unit: str
    value: float
    mean: float
    threshold: float | None
    open: bool = True
    changed: bool = False

    @property
    def signals(self) -> list[dict[str, Any]]:
        """As a decision event lists them."""
        return [{"name": self.signal, "value": self.mean, "unit": self.unit}]


@dataclass(frozen=True)
class Gate(Declared):
    """A controller's trigger, `wb.Gate`: open where a signal lies above a threshold (at least at it, or below it).

    The threshold is a number, or a quantile of the last 512 values that the run has compared; the first opens nothing.
    A number that fits one model does not fit another, whose entropies may lie above it at most tokens; a quantile does,
    and `wb.fit_gate` finds a number from traces. The signal is a mean over the last `window` readings. An open gate
    shuts once the signal is `hysteresis` beyond the threshold. A change comes at least `dwell` readings after the last.

        reading = gate.read(r.dist(logits), 0, state.memory, "mine")
        if reading.open:
            r.decide("mine", reading, "what was done")
    """

    signal: str = setting("entropy", choices=tuple(signals.UNITS), help="what is read of the next-token distribution")
    threshold: float | None = setting(None, help="value that is compared with")
    quantile: float | None = setting(
        None, ge=0, le=1, help="in place of the threshold: that quantile of the run so far"
    )
    when: str = setting("above", choices=("above", "at least", "below"), help="where it opens")
    window: int = setting(1, ge=1, le=256, unit="tokens", help="readings that are averaged")
    dwell: int = setting(0, ge=0, unit="tokens", help="least number of readings between changes")
    hysteresis: float = setting(0.0, ge=0, help="how far beyond the threshold an open gate shuts")
    of: str = setting("raw", choices=("raw", "sampled"), help="the model's distribution, or the one drawn from")
    unit: str = setting("nats", choices=("nats", "bits"), help="of a signal that is in nats")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None and self.quantile is None:
            raise BadInput("Gate: expected a threshold or a quantile, got neither")
        if self.unit == "bits" and signals.UNITS[self.signal] != "nats":
            raise BadInput(f"Gate: {self.signal} is in {signals.UNITS[self.signal]}; leave unit='nats'")

    def read(self, dist: Any, row: int, memory: dict[str, Any], name: str, open: bool = False, **more: Any) -> Reading:
        """Read a row of a `Distribution`; `open`: what the gate is before its first reading; more: see `signals.read`.

        What it knows between readings lies in `memory` under the controller's name, replaced and never changed.
        """
        value = signals.read(self.signal, dist, row, self.of, **more)
        return self.hear(value * signals.BITS if self.unit == "bits" else value, memory, name, open)

    def hear(self, value: float, memory: dict[str, Any], name: str, open: bool = False) -> Reading:
        """The reading of a value of the signal; see `read`."""
        seen, heard, was, since = memory.get(name, ((), (), open, self.dwell))
        seen = (*seen, value)[-self.window :]
        mean = sum(seen) / len(seen)
        limit = self.threshold
        if self.quantile is not None:
            limit = float(np.quantile(heard, self.quantile)) if heard else None
            heard = (*heard, mean)[-HEARD:]
        changed = self._opens(mean, limit, was) != was and since >= self.dwell
        memory[name] = (seen, heard, was ^ changed, (0 if changed else since) + 1)
        unit = self.unit if signals.UNITS[self.signal] == "nats" else signals.UNITS[self.signal]
        label = f"mean {self.signal}" if self.window > 1 else self.signal
        return Reading(label, unit, value, mean, limit, was ^ changed, changed)

    def _opens(self, value: float, limit: float | None, was: bool) -> bool:
        if limit is None:
            return was
        if self.when == "below":
            return value < limit + self.hysteresis * was
        limit -= self.hysteresis * was
        return value > limit or (self.when == "at least" and value == limit)
