"""A figure of these views as one static SVG, for pages that run no script: a notebook on GitHub, or its HTML export.

Drawn from the figure's own data: lines, marks, bars and maps, notes, legend and colour bars. It holds no ids, styles or
scripts, so that many can stand in one page.
"""

import html
import math
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.views.axes import Axis, written
from workbench.views.marks import apart, glyph, image, levels, line, painted, path, plain, px, tag, text

WIDTH, LIMIT = 760, 60_000  # pixels; bytes
GRAINS = (0.1, 1, 2, 4, 8, 16)  # pixels within which marks become one, until the drawing is small enough
EDGE, ROW, LETTER = 16, 18, 6.4  # pixels: a margin, a line of text, a letter
ANCHORS = {"left": "start", "right": "end"}


def svg(figure: go.Figure) -> str:
    """The figure as SVG of at most `LIMIT` bytes; marks that lie on each other are drawn once until it fits."""
    data, layout = [trace.to_plotly_json() for trace in figure.data], figure.layout.to_plotly_json()
    for grain in GRAINS:
        drawn = _Drawing(data, layout, grain).text()
        if len(drawn.encode()) <= LIMIT:
            return drawn
    note = {"text": "too much to draw here", "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    bare = {"xaxis": {"visible": False}, "yaxis": {"visible": False}, "height": 200, "annotations": [note]}
    return _Drawing([], {**bare, "template": layout.get("template", {})}, 1).text()


class _Drawing:
    """A figure on its way to text: `parts` are what is drawn, in order; `shapes` the numbers of each trace."""

    def __init__(self, data: list[dict], layout: dict, grain: float):
        self.layout, self.grain, self.parts = layout, grain, []
        self.template = layout.get("template", {}).get("layout", {})
        self.ink = self.template.get("font", {}).get("color", "#757575")
        self.height = int(layout.get("height") or 400)
        draw = {"heatmap": self._map, "bar": self._bars, "scatter": self._scatter}  # one over the other
        self.data = sorted((one for one in data if one["type"] in draw), key=lambda one: [*draw].index(one["type"]))
        keys = {key.replace("axis", "") for key in layout if re.fullmatch(r"[xy]axis\d*", key)} | {"x", "y"}
        self.axes = {key: self._axis(key) for key in sorted(keys)}
        self.shapes = self._shapes()
        self._fit()
        self._place()
        for one, shape in zip(self.data, self.shapes, strict=True):
            draw[one["type"]](one, shape)
        self._notes()

    def text(self) -> str:
        about = {"role": "img", "aria_label": html.unescape((self.layout.get("meta") or {}).get("description", ""))}
        look = {"viewBox": f"0 0 {WIDTH} {self.height}", "font_family": "system-ui, sans-serif", "fill": self.ink}
        place = {"xmlns": "http://www.w3.org/2000/svg", "width": WIDTH, "height": self.height}
        return tag("svg", "".join(self.parts), **place, **look, **about)

    def of(self, one: dict) -> tuple[Axis, Axis]:
        return self.axes[one.get("xaxis") or "x"], self.axes[one.get("yaxis") or "y"]

    # -- axes -------------------------------------------------------------------------------------------------------

    def _axis(self, key: str) -> Axis:
        letter = key[0]
        mine = (one for one in self.data if (one.get(f"{letter}axis") or letter) == key)
        options = self.template.get(f"{letter}axis", {}) | self.layout.get(f"{letter}axis{key[1:]}", {})
        return Axis(options, [value for one in mine for value in one[letter]])

    def _shapes(self) -> list[list[np.ndarray]]:
        """Numbers of every trace: x and y of a map; left, right, low and high of bars; x, y and base of a line."""
        found, tops = [], {}
        bars, mode = [id(one) for one in self.data if one["type"] == "bar"], self.layout.get("barmode", "group")
        for one in self.data:
            x, y = (axis.numbers(one[letter]) for axis, letter in zip(self.of(one), "xy", strict=True))
            flat, bar = one.get("orientation") == "h", one["type"] == "bar"
            along, amount = (y, x) if flat else (x, y)
            group = mode == "stack" and "bars" if bar else one.get("stackgroup")
            under = tops.setdefault((group, *self.of(one)), {}) if group else {}
            base = np.array([under.get(place, 0.0) for place in along])
            under |= zip(along, base + np.nan_to_num(amount), strict=True) if group else ()
            if bar:
                many, place = (len(bars), bars.index(id(one))) if mode == "group" else (1, 0)
                width = 0.8 * _gap(along) / many
                left = along + width * (place - many / 2)
                base = base if one.get("base") is None else np.broadcast_to(np.asarray(one["base"], float), along.shape)
                sides, reach = [left, left + width], [base, base + amount]
                found.append([*reach, *sides] if flat else [*sides, *reach])
            else:
                found.append([x, y] if one["type"] == "heatmap" else [x, base + y, base if group else y])
        return found

    def _fit(self) -> None:
        """Give every axis its ends."""
        covered = {axis: [np.empty(0)] for axis in self.axes.values()}
        room = dict.fromkeys(covered, 0.0)
        for one, shape in zip(self.data, self.shapes, strict=True):
            x, y = self.of(one)
            if one["type"] == "heatmap":
                shape = [side + sign * _gap(side) / 2 for side in shape for sign in (-1, 1)]
            else:
                room[y] = 0.05
                room[x] = 0.02 if "markers" in one.get("mode", "") or one["type"] == "bar" else room[x]
            first = shape if one["type"] != "scatter" else [shape[0], shape[0], *shape[1:], *_whiskers(one, shape[1])]
            covered[x] += first[:2]
            covered[y] += first[2:]
        for axis, parts in covered.items():
            axis.fit(np.concatenate(parts), room[axis])

    def _place(self) -> None:
        """Lay out margins, axes and legend, and draw what is not data."""
        across, up = ([axis for key, axis in self.axes.items() if key[0] == letter] for letter in "xy")
        rows = _wrapped([one for one in self.data if self.layout.get("showlegend") and one.get("name")
                         and one.get("showlegend", one["type"] != "heatmap")])  # fmt: skip
        scales = [one for one in self.data if one["type"] == "heatmap" and one.get("showscale", True)]
        turned = [name for axis in across if axis.options.get("tickangle") for name in axis.names]
        hanging = int(0.72 * LETTER * max((len(plain(name)) for name in turned), default=0))
        self.bottom = self.height - 44 - ROW * len(rows) - hanging
        for axis in up:
            start, end = axis.options.get("domain", (0, 1))
            axis.pixels = tuple(self.bottom - share * (self.bottom - EDGE) for share in (start, end))
        beside = {axis: axis.ticks(30) for axis in up if axis.options.get("visible", True)}
        widest = max((len(plain(label)) for ticks in beside.values() for _, label in ticks), default=0)
        self.left, self.right = int(32 + LETTER * widest), WIDTH - EDGE - max(map(_scale_width, scales), default=0)
        for axis in across:
            start, end = axis.options.get("domain", (0, 1))
            axis.pixels = tuple(self.left + share * (self.right - self.left) for share in (start, end))
        for axis, ticks in beside.items():
            self._up(axis, ticks)
        for axis in across:
            if axis.options.get("visible", True):
                self._across(axis, [other.pixels for other in beside], hanging)
        for one in scales:
            self._scale(one)
        for place, row in enumerate(rows):
            for one, x in row:
                self._item(one, EDGE + x, self.height - 8 - ROW * (len(rows) - 1 - place))

    def _up(self, axis: Axis, ticks: list[tuple[float, str]]) -> None:
        if axis.options.get("showgrid", True) and not axis.names:
            self._grid("".join(f"M{self.left} {px(axis.at(at))}H{self.right}" for at, _ in ticks))
        self.parts += [text(self.left - 5, axis.at(at) + 4, label, "end") for at, label in ticks]
        middle = sum(axis.pixels) / 2
        self.parts.append(text(12, middle, _title(axis.options), transform=f"rotate(-90 12 {px(middle)})"))

    def _across(self, axis: Axis, spans: list[tuple[float, float]], hanging: int) -> None:
        angle, ticks = axis.options.get("tickangle"), axis.ticks(70)
        if not angle and ticks:
            wide = max(len(plain(label)) for _, label in ticks) * LETTER + 8
            ticks = ticks[:: math.ceil(wide * len(ticks) / (self.right - self.left))]
        if axis.options.get("showgrid", True) and not axis.names:
            self._grid("".join(f"M{px(axis.at(at))} {px(low)}V{px(high)}" for at, _ in ticks for low, high in spans))
        for at, label in ticks:
            x, y = axis.at(at), self.bottom + 15
            turn = {"anchor": "end", "transform": f"rotate({angle} {px(x)} {y - 4})"} if angle else {}
            self.parts.append(text(x, y, label, **turn))
        self.parts.append(text(sum(axis.pixels) / 2, self.bottom + 33 + hanging, _title(axis.options)))

    def _grid(self, d: str) -> None:
        self.parts.append(line(d, {"width": 1}, self.template.get("xaxis", {}).get("gridcolor", "#8884")) if d else "")

    # -- traces -----------------------------------------------------------------------------------------------------

    def _inside(self, one: dict, parts: list[str], room: float = 6.0) -> None:
        """Parts of a trace, cut a little beyond its axes; across, where the figure names the ends, at them."""
        (left, right), (low, high) = (sorted(axis.pixels) for axis in self.of(one))
        side = 0.0 if "range" in self.of(one)[0].options else room
        box = [px(part) for part in (left - side, low - room, right - left + 2 * side, high - low + 2 * room)]
        place = dict(zip(("x", "y", "width", "height"), box, strict=True))
        self.parts.append(tag("svg", "".join(parts), **place, viewBox=" ".join(box), opacity=one.get("opacity")))

    def _scatter(self, one: dict, shape: list[np.ndarray]) -> None:
        across, up = self.of(one)
        x, y, base = across.at(shape[0]), up.at(shape[1]), up.at(shape[2])
        mode, look, marker = one.get("mode", "lines"), one.get("line", {}), one.get("marker", {})
        form, colour, parts = look.get("shape", "linear"), _colour(one), []
        d = path(x, y, form, self.grain)
        if one.get("stackgroup") and d:
            under = path(x[::-1], base[::-1], {"hv": "vh", "vh": "hv"}.get(form, form), self.grain)
            parts.append(tag("path", d=f"{d}L{under[1:]}z", **_filled(one)))
        if "lines" in mode:
            parts.append(line(d, look, colour))
        if ends := _whiskers(one, shape[1]):
            spans = zip(x, *map(up.at, ends), strict=True)
            d = "".join(f"M{px(a - 3)} {px(b)}h6m-3 0V{px(c)}m-3 0h6" for a, b, c in spans)
            parts.append(line(d, {"width": 1}, colour))
        if "markers" in mode and marker.get("opacity", 1) and not ("lines" in mode and self.grain >= 1):
            marker = {**marker, "symbol": "circle"} if self.grain >= 2 else marker
            mark, places = glyph(marker), np.round([x, y], int(self.grain < 1))
            d = "".join(f"M{px(places[0, k])} {px(places[1, k])}{mark}" for k in apart(x, y, self.grain))
            parts.append(tag("path", d=d, **painted(marker, colour)))
        if "text" in mode:
            font, reach = one.get("textfont", {}).get("size", 11), marker.get("size", 6) / 2
            drop, words = reach + font if "bottom" in one.get("textposition", "") else -reach - 4, one["text"]
            parts += [text(x[k], y[k] + drop, words[k], size=font) for k in apart(x, y, 6 * self.grain)]
        self._inside(one, parts)

    def _bars(self, one: dict, shape: list[np.ndarray]) -> None:
        across, up = self.of(one)
        left, right = np.sort([across.at(side) for side in shape[:2]], axis=0)
        low, high = (up.at(side) for side in shape[2:])
        boxes = (f"M{px(left[k])} {px(low[k])}H{px(max(right[k], left[k] + 1))}V{px(high[k])}H{px(left[k])}z"
                 for k in apart(left, high, self.grain))  # fmt: skip
        self._inside(one, [tag("path", d="".join(boxes), **_filled(one))], 0.0)
        inside, fill = one.get("textposition") == "inside", one.get("textfont", {}).get("color")
        places = zip((left + right) / 2, low - 5 if inside else high - 4, one.get("text", ()), strict=False)
        self.parts += [text(x, y, word, fill=fill) for x, y, word in places if x == x and y == y]

    def _map(self, one: dict, shape: list[np.ndarray]) -> None:
        across, up = self.of(one)
        x, y = across.at(shape[0]), up.at(shape[1])
        values = np.array([[np.nan if value is None else value for value in row] for row in one["z"]], dtype=float)
        if not values.size:
            return
        shares = (values - one["zmin"]) / (one["zmax"] - one["zmin"])
        level = np.where(np.isnan(shares), 0, shares.clip(0, 1) * 254 + 1).round().astype(np.uint8)
        (left, right), (top, bottom) = (sorted(axis.pixels) for axis in (across, up))
        columns, rows = _nearest(x, left, right, one.get("xgap", 0)), _nearest(y, top, bottom, one.get("ygap", 0))
        cells = np.where((rows >= 0)[:, None] & (columns >= 0), level[rows][:, columns], 0).astype(np.uint8)
        self.parts.append(image(cells, levels(one["colorscale"]), left, top))
        template, font = one.get("texttemplate"), one.get("textfont", {})
        if template and self.grain < 1:
            look = {"size": font.get("size", 11), "fill": font.get("color", "#fff")}
            said = (lambda r, c: one["text"][r][c]) if "%{text}" in template else (lambda r, c: template)
            self._inside(one, [text(x[c], y[r] + 4, said(r, c), **look) for r, c in np.argwhere(level)], 0.0)

    # -- beside the data --------------------------------------------------------------------------------------------

    def _scale(self, one: dict) -> None:
        """The colour bar of a map."""
        bar, x, tall = one.get("colorbar", {}), self.right + 14, self.bottom - EDGE
        middle, half = self.bottom - bar.get("y", 0.5) * tall, bar.get("len", 1) * tall / 2
        top, low = max(EDGE + 16.0, middle - half), min(self.bottom, middle + half)
        steps = np.linspace(255, 1, int(low - top)).round().astype(np.uint8)
        self.parts.append(image(steps[:, None].repeat(12, 1), levels(one["colorscale"]), x, top))
        axis = Axis({**bar, "range": (one["zmin"], one["zmax"])}, [])
        axis.fit(np.empty(0), 0)
        axis.pixels = (low, top)
        ticks = [(value, written(value)) for value in bar.get("tickvals") or ()] or axis.ticks(40)
        self.parts += [text(x + 17, axis.at(value) + 4, label, "start") for value, label in ticks]
        self.parts.append(text(x - 2, top - 6, _title(bar), "start"))

    def _item(self, one: dict, x: float, y: float) -> None:
        """An entry of the legend."""
        colour, marker, mode = _colour(one), one.get("marker", {}), one.get("mode", "")
        if one["type"] != "scatter" or one.get("stackgroup"):
            self.parts.append(tag("rect", x=x + 5, y=y - 10, width=12, height=12, **_filled(one)))
        elif "lines" in mode:
            self.parts.append(line(f"M{px(x)} {px(y - 4)}h22", one.get("line", {}), colour))
        if "markers" in mode and not one.get("stackgroup"):
            self.parts.append(tag("path", d=f"M{px(x + 11)} {px(y - 4)}{glyph(marker)}", **painted(marker, colour)))
        self.parts.append(text(x + 28, y, one["name"], "start"))

    def _notes(self) -> None:
        for one in self.layout.get("shapes", ()):
            x, y = ([self._spot(one, letter, one[f"{letter}{end}"]) for end in (0, 1)] for letter in "xy")
            look = one.get("line", {})
            self.parts.append(line(f"M{px(x[0])} {px(y[0])}L{px(x[1])} {px(y[1])}", look, look.get("color", self.ink)))
        for note in self.layout.get("annotations", ()):
            x, y = (self._spot(note, letter, note[letter]) for letter in "xy")
            x, y = x + note.get("xshift", 0), y + (12 if note.get("yanchor") == "top" else 0)
            size = note.get("font", {}).get("size", 11)
            self.parts.append(text(x, y, note["text"], ANCHORS.get(note.get("xanchor"), "middle"), size))

    def _spot(self, one: dict, letter: str, value: Any) -> float:
        """The pixel of a value that is on an axis, or a share of the whole."""
        axis = self.axes.get(one.get(f"{letter}ref", letter))
        if axis:
            return float(axis.at(axis.numbers([value])[0]))
        first, last = (self.left, self.right) if letter == "x" else (self.bottom, EDGE)
        return first + value * (last - first)


def _title(part: dict) -> str:
    title = part.get("title") or {}
    return title if isinstance(title, str) else title.get("text") or ""


def _colour(one: dict) -> str:
    """The colour that stands for a trace."""
    known = one["colorscale"][-1][1] if one["type"] == "heatmap" else None
    return known or one.get("marker", {}).get("color") or one.get("line", {}).get("color") or "#7b828e"


def _filled(one: dict) -> dict[str, Any]:
    """The colour of a bar or an area; a hatched or stacked one is paler."""
    pale = one.get("marker", {}).get("pattern", {}).get("shape") or one.get("stackgroup")
    return {"fill": _colour(one), "fill_opacity": 0.6 if pale else None}


def _gap(places: np.ndarray) -> float:
    """The least distance between places."""
    gaps = np.diff(np.unique(places[np.isfinite(places)]))
    return float(gaps.min()) if gaps.size else 1.0


def _whiskers(one: dict, middle: np.ndarray) -> list[np.ndarray]:
    """Lower and upper ends of error bars."""
    ends, known = (("arrayminus", -1), ("array", 1)), one.get("error_y", {})
    return [middle + sign * np.asarray(known[end], float) for end, sign in ends if end in known]


def _nearest(centres: np.ndarray, start: float, end: float, gap: int) -> np.ndarray:
    """Which cell each pixel from start to end shows; −1 for none, and for the last pixel of a cell with a gap."""
    order, pixels = np.argsort(centres), np.arange(int(start), int(end)) + 0.5
    sides = centres[order]
    half = _gap(sides) / 2 if len(sides) > 1 else end - start
    found = order[np.searchsorted((sides[1:] + sides[:-1]) / 2, pixels)]
    outside = (pixels < sides[0] - half) | (pixels > sides[-1] + half)
    last = np.diff(found, append=found[-1]) != 0 if gap else np.zeros(len(found), bool)
    return np.where(outside | last, -1, found)


def _scale_width(one: dict) -> int:
    bar = one.get("colorbar", {})
    return int(44 + LETTER * max(2, len(_title(bar)) - 3))


def _wrapped(items: list[dict]) -> list[list[tuple[dict, float]]]:
    """Entries of the legend in rows, each with its place."""
    rows, x = [], float(WIDTH)
    for one in items:
        width = 28 + LETTER * len(plain(one["name"])) + 14
        if x + width > WIDTH - 2 * EDGE:
            rows.append([])
            x = 0.0
        rows[-1].append((one, x))
        x += width
    return rows
