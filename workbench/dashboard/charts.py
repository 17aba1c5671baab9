"""Charts as HTML: an interval plot, a scatter, gauges and bars; their look is that of `web/charts.css`.

Every plot is drawn twice, for a wide and for a narrow place, and the stylesheet shows the one that fits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from workbench.dashboard.html import inert
from workbench.report.headline import size
from workbench.views.axes import round_step

EXACT = 1e-7  # nats per token: below, a divergence is rounding
WIDE, NARROW = 700, 370  # units of a drawing; shown at about a pixel each
ROW = 27  # of an interval plot
EM = 0.56  # mean width of a letter, of the size of the type
LOWEST = -4  # of a gauge, as a power of ten


class Mark(NamedTuple):
    """A row of an interval plot; without `low` and `high` it has no whisker. note: the text at the right."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    strong: bool = False


class Dot(NamedTuple):
    """A point of the scatter: a speed-up and a KL divergence (nats per token), each with its interval, bytes of the
    target's cache, and bytes that drafting adds."""

    name: str
    speed: tuple[float, float | None, float | None]
    apart: tuple[float, float | None, float | None]
    target: float
    draft: float = 0
    strong: bool = False


class Scale(NamedTuple):
    """From `low`..`high` of the data to `start`..`end` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def signed(
    value: float | None,
    low: float | None,
    high: float | None,
    form: Callable[[float], str] | None = None,
    unit: str = "",
    small: bool = False,
) -> str:
    """A figure with its interval as text, where it has one: "1.62 [1.51, 1.73]"; `small`: that in small type."""
    form = form or words
    if low is None or high is None or abs(high) < EXACT:
        return form(value) + unit
    ends = f"[{form(low)}, {form(high)}]"
    return f"{form(value)}{unit} " + (f"<small>{ends}</small>" if small else ends)


def words(value: float | None) -> str:
    """A figure as text: three digits from 1 on, two below it, 0 where it is rounding, "–" where there is none."""
    if value is None:
        return "–"
    if abs(value) < EXACT:
        return "0"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def intervals(marks: Sequence[Mark], label: str) -> str:
    """Figures of about 1 with their intervals, a row each, over a line at 1."""
    return _both(label, lambda width: _intervals(marks, width))


def _intervals(marks: Sequence[Mark], width: int) -> tuple[int, str]:
    narrow = width == NARROW
    left, right, height = 140 if narrow else 190, 12 if narrow else 118, 30 + ROW * len(marks)
    known = [value for one in marks for value in (one.value, one.low, one.high) if value is not None]
    ticks = _ticks(known, narrow)
    x = Scale(ticks[0], ticks[-1], left, width - right)
    drawn = _grid(x, ticks, 2, height - 24)
    for place, one in enumerate(marks):
        y, kind = ROW * place + 15, "wb-mark wb-strong" if one.strong else "wb-mark"
        drawn += f'<g class="{kind}"><title>{inert(f"{one.name}: {one.note}")}</title>'
        drawn += f'<rect class="wb-row" x="0" y="{y - 13}" width="{width}" height="26" rx="4"/>'
        drawn += _text(6, y + 4, _clipped(one.name, left - 14, 12), "wb-name")
        if one.low is not None and one.high is not None:
            low, high = x(one.low), x(one.high)
            drawn += f'<path class="wb-whisker" d="M{low},{y}H{high}M{low},{y - 4}v8M{high},{y - 4}v8"/>'
        drawn += f'<rect class="wb-value" x="{x(one.value) - 5:.1f}" y="{y - 5}" width="10" height="10" rx="2"/>'
        drawn += "" if narrow else _text(width - 4, y + 4, one.note, "wb-note", "end")
        drawn += "</g>"
    return height, drawn


def scatter(dots: Sequence[Dot], label: str) -> str:
    """Speed-up by KL divergence, on a log axis with a band for 0, by bytes (area; the ring is what drafting adds)."""
    return _both(label, lambda width: _scatter(dots, width))


def _scatter(dots: Sequence[Dot], width: int) -> tuple[int, str]:
    narrow, left, top = width == NARROW, 58, 12
    apart = [value for dot in dots for value in dot.apart if value is not None and value > EXACT]
    height, largest = (300, 13) if narrow else (max(290, 30 + ROW * len(dots)), 17)
    height = height if apart else 170
    band = height - 46 - 2 * largest - 6  # where the band for 0 begins
    ticks = _ticks([value for dot in dots for value in dot.speed if value is not None], narrow)
    x = Scale(ticks[0], ticks[-1], left + largest, width - largest)
    powers = range(math.floor(math.log10(min(apart))), math.ceil(math.log10(max(apart))) + 1) if apart else range(0)
    log = Scale(powers[0], max(powers[-1], powers[0] + 1), band - 34, top) if apart else None
    middle = band + largest + 3

    def y(kl: float) -> float:
        return log(max(math.log10(kl), powers[0])) if log and kl > EXACT else middle

    most = max((dot.target + dot.draft for dot in dots), default=0) or 1
    drawn = f'<rect class="wb-band" x="{left}" y="{band}" width="{width - left}" height="{2 * largest + 6}"/>'
    drawn += _text(left - 6, middle + 4, "exact: 0", anchor="end")
    for power in powers:
        drawn += f'<path class="wb-grid" d="M{left},{log(power)}H{width}"/>'
        drawn += _text(left - 6, log(power) + 4, f"{10.0**power:g}", anchor="end")
    drawn += _grid(x, ticks, top - 6, height - 40)
    about = "KL, nats / token (log) · area: peak cache"
    about = about if narrow else about.replace("KL,", "KL from the full cache,") + ", ring: + draft"
    drawn += _text(left, height - 6, about) + _text(width - 2, height - 6, "speed-up →", anchor="end")
    placed = _Labels(left, width, top, band + 2 * largest + 6)
    circles = [(dot, x(dot.speed[0]), y(dot.apart[0]), _radius(dot, most, largest)) for dot in dots]
    for _, cx, cy, (_, outer) in circles:
        placed.take(cx - outer, cy - outer, cx + outer, cy + outer)
    for dot, cx, cy, (inner, outer) in sorted(circles, key=lambda one: -one[3][1]):
        (_, low, high), (kl, near, far) = dot.speed, dot.apart
        drawn += f'<g class="wb-dot{" wb-strong" if dot.strong else ""}"><title>{inert(_told(dot))}</title>'
        reach = f"M{x(low)},{cy}H{x(high)}" if low is not None and high is not None else ""
        reach += f"M{cx},{y(near)}V{y(far)}" if near is not None and far is not None and kl > EXACT else ""
        drawn += f'<path class="wb-whisker" d="{reach}"/>' if reach else ""
        drawn += f'<circle class="wb-ring" cx="{cx}" cy="{cy}" r="{outer}"/>' if dot.draft else ""
        drawn += f'<circle class="wb-bytes" cx="{cx}" cy="{cy}" r="{inner}"/></g>'
    for dot, cx, cy, (_, outer) in sorted(circles, key=lambda one: (one[2] < middle, one[1])):
        drawn += placed.label(_clipped(dot.name, 170, 11), cx, cy, outer, dot.strong)
    return height, drawn


def _radius(dot: Dot, most: float, largest: float) -> tuple[float, float]:
    """Of the target's cache and of both: the area is the bytes, those of the largest dot are `largest` wide."""
    inner, outer = (max(2.5, largest * math.sqrt(part / most)) for part in (dot.target, dot.target + dot.draft))
    return round(inner, 1), round(max(outer, inner + 2) if dot.draft else outer, 1)


def _told(dot: Dot) -> str:
    more = f" + {size(dot.draft)} for drafting" if dot.draft else ""
    return f"{dot.name}: {signed(*dot.speed)}×, KL {signed(*dot.apart)} nats / token, {size(dot.target)}{more}"


class _Labels:
    """Places names beside their dots, each where it covers no dot and no other name, as near as that is possible."""

    def __init__(self, left: float, right: float, top: float, bottom: float):
        self.frame, self.taken = (left, top, right, bottom), []

    def take(self, *box: float) -> None:
        self.taken.append(box)

    def _free(self, box: tuple[float, ...]) -> bool:
        left, top, right, bottom = self.frame
        inside = left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
        return inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in self.taken
        )

    def label(self, text: str, x: float, y: float, radius: float, strong: bool) -> str:
        """The name of a dot, with a line to it where it is not beside it; nothing where there is no room at all."""
        wide, near = EM * 11 * len(text) * (1.06 if strong else 1), radius + 4
        for up in sorted(range(-96, 97, 12), key=abs):
            out = near if abs(up) < radius else 8
            middle = [min(max(x - wide / 2, self.frame[0]), self.frame[2] - wide)] if abs(up) > radius else []
            for start in (*middle, x + out, x - out - wide):
                base = y + 4 + up
                box = (start, base - 10, start + wide, base + 3)
                if self._free(box):
                    self.take(*box)
                    kind = "wb-name wb-strong" if strong else "wb-name"
                    name = _text(round(start, 1), round(base, 1), text, kind)
                    end = min(max(x, start), start + wide), base + 3 if up < 0 else base - 10
                    return (_leader((x, y), end, radius) if abs(up) > radius + 12 else "") + name
        return ""


def _leader(start: tuple[float, float], end: tuple[float, float], radius: float) -> str:
    """A line from the edge of a dot to its name."""
    share = min(1, radius / (math.dist(start, end) or 1))
    x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
    return f'<path class="wb-leader" d="M{x:.1f},{y:.1f}L{end[0]:.1f},{end[1]:.1f}"/>'


def gauge(head: str, seen: float, bound: float, text: str) -> str:
    """A rate on a log axis from 0.01 % to 100 %: solid up to what was seen, hatched up to the bound; then `text`."""
    at, to = _along(seen), max(_along(seen), _along(bound))
    ends = "<small><span>0.01 %</span><span>1 %</span><span>100 %</span></small>"
    bar = f'<i aria-hidden="true" style="--at:{at:.1f}%;--to:{to:.1f}%"></i>'
    return f'<div class="wb-gauge"><b>{inert(head)}</b>{bar}{ends}<p>{inert(text)}</p></div>'


def _along(rate: float) -> float:
    """Where a rate is on the log axis of a gauge, in percent."""
    return 100 * (1 - max(LOWEST, math.log10(min(rate, 1))) / LOWEST) if rate > 0 else 0.0


def bars(rows: Iterable[tuple[str, Sequence[float], str]]) -> str:
    """Lengths to compare, a row each: name, the parts of the bar, and what is said of it."""
    rows = list(rows)
    most = max((sum(parts) for _, parts, _ in rows), default=0) or 1
    drawn = ""
    for name, parts, said in rows:
        pieces = "".join(f'<i style="width:{100 * part / most:.1f}%"></i>' for part in parts)
        drawn += f'<dt>{inert(name)}</dt><dd><span aria-hidden="true">{pieces}</span>{inert(said)}</dd>'
    return f'<dl class="wb-bars">{drawn}</dl>'


def _both(label: str, draw: Callable[[int], tuple[int, str]]) -> str:
    made = ""
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        height, drawn = draw(width)
        box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{inert(label)}"'
        made += f'<svg class="wb-chart wb-{name}" {box}>{drawn}</svg>'
    return made


def _grid(x: Scale, ticks: Iterable[float], top: float, bottom: float) -> str:
    """Vertical lines with their values below, the one at 1 in ink."""
    drawn = ""
    for tick in sorted({*ticks, 1.0}):
        kind = "wb-one" if tick == 1 else "wb-grid"
        drawn += f'<path class="{kind}" d="M{x(tick)},{top}V{bottom}"/>' + _text(x(tick), bottom + 14, f"{tick:g}×")
    return drawn


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    anchor = anchor or ("middle" if text.endswith("×") else "start")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{f" class={kind!r}" if kind else ""}>{inert(text)}</text>'


def _clipped(text: str, room: float, font: float) -> str:
    """A text that fits into so much room."""
    most = int(room / (EM * font))
    return text if len(text) <= most else text[: most - 1] + "…"


def _ticks(values: Sequence[float], narrow: bool) -> list[float]:
    """Round values from below the least to above the largest, 1 among those that they enclose."""
    low, high = min(0.9, *values), max(1.1, *values)
    step = round_step((high - low) / (4 if narrow else 7))
    return [round(step * k, 10) for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
