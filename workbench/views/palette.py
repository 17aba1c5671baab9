"""One palette for app, widget, capsule and figures: chrome is grey, colour is data, and a hue has one meaning.

A shape or a name stands beside every colour. `HUES` are pairs for a light and a dark page, from which the stylesheet's
variables are made; `PALETTE` are single colours for figures, each with a contrast of 3:1 on both pages, so that a
figure reads wherever it is put.
"""

HUES: dict[str, tuple[str, str]] = {
    "accepted": ("#178a4e", "#3fbf7c"),
    "rejected": ("#cf3527", "#ff7c6a"),
    "resampled": ("#b86b00", "#f5a93d"),
    "bonus": ("#1d6cd3", "#6cabff"),
    "pending": ("#737a86", "#868e9b"),  # never reached, too
    "entropy": ("#6a4bd0", "#a892ff"),  # and every probability
    "cache": ("#0c8190", "#42b7c3"),
    "bits": ("#ad2f7d", "#ee80c0"),
    "caution": ("#fff1bd", "#3b320f"),
    "caution-ink": ("#695000", "#ffdf80"),
    "ink": ("#15181d", "#e8eaee"),
    "quiet": ("#5a616d", "#9ea6b3"),
    "faint": ("#666d79", "#8c95a1"),
    "page": ("#ffffff", "#0f1115"),
    "panel": ("#f8f9fa", "#14171c"),
    "sunken": ("#f1f2f4", "#1b1f26"),
    "line": ("#e4e6ea", "#242932"),
    "edge": ("#cdd1d8", "#39404c"),
}
_GREEN, _RED, _ORANGE, _BLUE, _GREY = "#1f9457", "#d8432f", "#c67500", "#2b78dd", "#7b828e"
_VIOLET, _LILAC, _TEAL, _MAGENTA = "#7d5fe0", "#9480cf", "#0f8998", "#b8408a"
_SAND, _STEEL, _SAGE, _TAN, _MAUVE = "#8a8256", "#5f7f95", "#6b8f71", "#9a7b6b", "#8a6f8f"  # without a meaning

PALETTE: dict[str, dict[str, str]] = {
    "source": {"target": _GREY, "bonus": _BLUE, "residual": _ORANGE, "draft": _GREEN},  # draft: any drafter's name
    "fate": {
        "accepted": _GREEN, "rejected": _RED, "sibling_won": "#b0716a", "parent_rejected": _GREY, "pruned": "#646a75",
        "after_end": "#8d929b",
    },
    "phase": {
        "prefill": _GREY, "draft": _SAND, "target": _STEEL, "score": _MAUVE, "verify": _SAGE, "commit": _TAN,
        "cache": _TEAL,
    },
    "model": {"target": _STEEL, "draft": _SAND},
    "kind": {"payload": _TEAL},
    "slot": {"evicted": _GREY, "merged away": _MAUVE, "host": "#4f9aa3", "merged into": "#3a6f95", "kept": _TEAL},
    "signal": {
        "entropy_raw": _VIOLET, "entropy_sampled": _LILAC, "drafted": _GREY, "accepted": _GREEN, "bits": _MAGENTA,
        "reference": "#6b7280",
    },
    "arm": {"a": "#646a75", "b": _STEEL},
}  # fmt: skip
_REST = (_SAND, _STEEL, _MAUVE, _SAGE, _TAN, _LILAC, "#4f9aa3", "#b0716a", _GREY)
# what figures are put on: page, text and grid of a theme; without one, text that reads on both pages
PAGES: dict[str | None, dict[str, str]] = {
    "light": {"page": HUES["page"][0], "text": HUES["ink"][0], "grid": HUES["line"][0]},
    "dark": {"page": HUES["page"][1], "text": HUES["ink"][1], "grid": "#333845"},
    None: {"text": "#757575", "grid": "rgba(128,128,128,0.25)"},
}


def colour(group: str, name: str) -> str:
    """The colour of a name: its own where it has one, else one that depends on the name alone."""
    known = PALETTE[group]
    if name in known:
        return known[name]
    if group == "source":
        return known["draft"]
    return _REST[sum(name.encode("utf-8", "replace")) % len(_REST)]


def colours(group: str, names: list[str]) -> dict[str, str]:
    """Colours for names shown together: their own, else the palette's in turn (no two alike, up to nine).

    The first drafter among sources has that of accepted tokens.
    """
    known = PALETTE[group]
    rest = (known["draft"], *_REST) if group == "source" else _REST
    free = [c for c in rest if c not in {known[name] for name in names if name in known}] or list(_REST)
    others = [name for name in names if name not in known]
    return {n: known[n] if n in known else free[others.index(n) % len(free)] for n in names}


def tint(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` through which the page shows."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:.3g})"


def scale(colour: str) -> list[str]:
    """Nine shades of a colour, from one that a page just shows to the full one: more is further from either page."""
    return [tint(colour, 0.25 + 0.75 * step / 8) for step in range(9)]
