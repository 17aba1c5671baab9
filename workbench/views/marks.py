"""Pieces of an SVG: tags, text, marks, lines and images, from what Plotly's traces say."""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

DASHES = {"dash": "8 5", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "12 5"}
CORNERS = {"square": (4, 1, 45), "diamond": (4, 1, 0), "hexagon": (6, 1, 0), "triangle-down": (3, 1, 90),
           "star": (10, 0.45, -90)}  # how many, radius of every second, turn in degrees  # fmt: skip


def px(value: float) -> str:
    """A number of pixels."""
    return f"{value:.1f}".removesuffix(".0")


def plain(words: Any) -> str:
    """A text of Plotly's without its entities; what XML cannot hold is replaced."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", html.unescape(str(words)))


def tag(name: str, inside: str = "", **given: Any) -> str:
    """An element; attributes are escaped, those that are None left out."""
    known = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
    written_out = (f' {key}="{px(v) if isinstance(v, float) else html.escape(plain(v))}"' for key, v in known.items())
    return f"<{name}{''.join(written_out)}" + (f">{inside}</{name}>" if inside else "/>")


def text(x: float, y: float, words: Any, anchor: str = "middle", size: float = 11, **more: Any) -> str:
    """Words at a place, escaped; `<br>` begins another line."""
    first, *rest = (html.escape(plain(part), quote=False) for part in re.split("<br ?/?>", str(words)))
    inside = first + "".join(tag("tspan", part, x=float(x), dy="1.2em") for part in rest)
    place = {"x": float(x), "y": float(y), "text_anchor": anchor, "font_size": size}
    return tag("text", inside, **place, **more) if inside else ""


def glyph(marker: dict) -> str:
    """The mark of a trace, to be put behind a move to its place."""
    symbol, r = marker.get("symbol", "circle"), marker.get("size", 6) / 2
    if symbol.startswith("line-ew"):
        return f"m{px(-r)} 0h{px(2 * r)}"
    if symbol == "x":
        return f"m{px(-r)} {px(-r)}l{px(2 * r)} {px(2 * r)}m{px(-2 * r)} 0l{px(2 * r)} {px(-2 * r)}"
    if symbol == "circle-open":
        return f"m{px(-r)} 0a{px(r)} {px(r)} 0 1 0 {px(2 * r)} 0a{px(r)} {px(r)} 0 1 0 {px(-2 * r)} 0"
    if (symbol := symbol.removesuffix("-open")) not in CORNERS:
        return "h0"  # a dot, as wide as its stroke
    many, inner, turn = CORNERS[symbol]
    angles = [math.radians(turn + 360 * place / many) for place in range(many)]
    reach = [1.15 * r * (inner if place % 2 else 1) for place in range(many)]
    spots = np.array([[a * math.cos(t), a * math.sin(t)] for a, t in zip(reach, angles, strict=True)])
    first, *rest = (f"{px(x)} {px(y)}" for x, y in np.diff(spots, axis=0, prepend=0))
    return f"m{first}l{' '.join(rest)}z"


def painted(marker: dict, colour: str) -> dict[str, Any]:
    """How a mark is filled and outlined."""
    symbol, edge, size = marker.get("symbol", "circle"), marker.get("line", {}), marker.get("size", 6)
    if symbol.endswith("-open"):
        return {"fill": "none", "stroke": colour, "stroke_width": edge.get("width", 1.5)}
    if symbol in CORNERS:
        return {"fill": colour, "stroke": edge.get("color") if edge.get("width") else None}
    width, cap = (size / 3.5, None) if symbol == "x" else (size, "round")
    return {"fill": "none", "stroke": colour, "stroke_width": width, "stroke_linecap": cap}


def line(d: str, look: dict, colour: str) -> str:
    """A path in a Plotly line's width and dashes."""
    dashes = DASHES.get(look.get("dash"))
    return tag("path", d=d, fill="none", stroke=colour, stroke_width=look.get("width", 2), stroke_dasharray=dashes)


def path(x: np.ndarray, y: np.ndarray, shape: str, grain: float) -> str:
    """A line through the points, which stops at gaps; of those in one column of pixels, the outermost."""
    known, found = np.isfinite(x) & np.isfinite(y), []
    x, y = (np.round(part, int(grain < 1)) for part in (x, y))
    for run in np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1):
        if not len(run) or not known[run[0]]:
            continue
        columns = np.split(run, np.flatnonzero(np.diff(np.floor(x[run] / grain))) + 1)
        run = np.array(sorted({k for c in columns for k in (c[0], c[y[c].argmin()], c[y[c].argmax()], c[-1])}))
        level = np.diff(y[run]) == 0
        first, *rest = run[~np.r_[False, level[1:] & level[:-1], False][: len(run)]]  # ends of level parts are enough
        before = x[first]
        found.append(f"M{px(before)} {px(y[first])}")
        for a, b in zip(x[rest], y[rest], strict=True):
            across, up, half = f"H{px(a)}", f"V{px(b)}", f"H{px((before + a) / 2)}"
            steps = {"hv": across + up, "vh": up + across, "hvh": half + up + across}
            found.append(steps.get(shape, f"L{px(a)} {px(b)}"))
            before = a
    return "".join(found)


def apart(x: np.ndarray, y: np.ndarray, grain: float) -> list[int]:
    """The last of the points in every square of so many pixels."""
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return list({(x[place] // grain, y[place] // grain): place for place in known}.values())


def levels(scale: Sequence) -> np.ndarray:
    """A Plotly colour scale as [256, 4] bytes; level 0 is clear."""
    at, colours = zip(*scale, strict=True)
    parts = np.array([_channels(colour) for colour in colours])
    found = np.stack([np.interp(np.linspace(0, 1, 255), at, parts[:, channel]) for channel in range(4)], 1)
    return np.vstack([np.zeros(4), found]).round().astype(np.uint8)


def _channels(colour: str) -> list[float]:
    if colour.startswith("#"):
        return [*(int(colour[place : place + 2], 16) for place in (1, 3, 5)), 255]
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
    return [red, green, blue, 255 * (alpha or [1])[0]]


def image(cells: np.ndarray, colours: np.ndarray, x: float, y: float) -> str:
    """Levels [rows, columns] as an image of as many pixels, with its colours [256, 4]."""
    (high, wide), content = cells.shape, io.BytesIO()
    picture = Image.frombytes("P", (wide, high), cells.tobytes())
    picture.putpalette(colours[:, :3].tobytes())
    picture.save(content, "PNG", transparency=colours[:, 3].tobytes(), compress_level=9)
    place = {"x": int(x), "y": int(y), "width": wide, "height": high, "style": "image-rendering:pixelated"}
    return tag("image", href=f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}", **place)
