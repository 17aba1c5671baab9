"""The axes of a static drawing: where values lie, and which of them carry a label."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np


class Axis:
    """An axis of a Plotly figure: linear, logarithmic or of categories.

    `fit` sets the numbers at its ends, `pixels` is where they are drawn; on a category axis a number is the place of a
    name, on a logarithmic one an exponent of ten.
    """

    def __init__(self, options: dict[str, Any], values: Iterable[Any]):
        values = dict.fromkeys(value for value in values if value is not None)
        self.options, self.log = options, options.get("type") == "log"
        named = options.get("type") == "category" or not all(isinstance(value, Real) for value in values)
        self.names = {name: place for place, name in enumerate(values)} if named else {}
        self.ends = self.pixels = (0.0, 1.0)

    def numbers(self, values: Iterable[Any]) -> np.ndarray:
        """The numbers of values; NaN for what has none."""
        found = [self.names.get(value, value) for value in values]
        plain = np.array([value if isinstance(value, Real) else np.nan for value in found], dtype=float)
        return np.log10(np.where(plain > 0, plain, np.nan)) if self.log else plain

    def at(self, numbers: Any) -> Any:
        """The pixels of numbers."""
        (low, high), (first, last) = self.ends, self.pixels
        return first + (numbers - low) / (high - low) * (last - first)

    def fit(self, numbers: np.ndarray, room: float) -> None:
        """From the least to the greatest number, and a share of that as room, unless the figure names the ends."""
        known = numbers[np.isfinite(numbers)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
        if self.options.get("rangemode") == "tozero":
            low, high = min(low, 0.0), max(high, 0.0)
        room *= high - low or 2.0
        low, high = (-0.5, len(self.names) - 0.5) if self.names else (low - room if low else low, high + room)
        low, high = self.options.get("range") or (low, high)
        ends = (low, high if high != low else low + 1)
        self.ends = ends[::-1] if self.options.get("autorange") == "reversed" else ends

    def ticks(self, gap: float) -> list[tuple[float, str]]:
        """Numbers and labels, about as many pixels apart; categories no closer than a line of text."""
        form, (low, high) = self.options.get("tickformat"), sorted(self.ends)
        unit = abs(self.pixels[1] - self.pixels[0]) / (high - low)
        if self.names:
            every = math.ceil(min(gap, 13) / unit)
            found = [(place, str(name)) for name, place in self.names.items() if place % every == 0]
        else:
            step = self.options.get("dtick") or 0
            step = step if step * unit >= 13 else round_step(gap / unit)
            step = max(step, 1) if form == "d" or self.log else step
            places = [n * step for n in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
            found = [(place, written(10**place if self.log else place, form)) for place in places]
        shown = self.options.get("showticklabels", True)
        return [(place, label if shown else "") for place, label in found if low - 1e-9 <= place <= high + 1e-9]


def written(value: float, form: str | None = None) -> str:
    """A number in one of d3's forms, of those that Python has too."""
    return (f"{value:.0f}" if form == "d" else format(value, form or ".6g")).replace("-", "−")


def round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
