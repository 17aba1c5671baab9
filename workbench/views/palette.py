"""One palette for every face, after Okabe and Ito's, safe for the colour-blind; a symbol or a name stands beside each.

Every colour reaches a contrast of 3:1 on a white page and on a dark one, so that a figure reads wherever it is put.
"""

__all__ = ["PAGES", "PALETTE", "SEQUENTIAL", "colour", "colours"]

_PURPLE, _ORANGE, _SKY, _GREEN = "#8a63d2", "#c27c00", "#3d9ad6", "#009e73"
_YELLOW, _BLUE, _RED, _PINK, _GREY = "#938a00", "#0072b2", "#d55e00", "#c56b9c", "#8a8a8a"

PALETTE: dict[str, dict[str, str]] = {
    "source": {"target": _BLUE, "bonus": _GREEN, "residual": _RED, "draft": _ORANGE},  # draft: any drafter's name
    "fate": {
        "accepted": _GREEN, "rejected": _RED, "sibling_won": _SKY, "parent_rejected": _GREY, "pruned": _PINK,
        "after_end": _YELLOW,
    },
    "phase": {
        "prefill": _GREY, "draft": _ORANGE, "target": _BLUE, "score": _PINK, "verify": _GREEN, "commit": _SKY,
        "cache": _YELLOW,
    },
    "model": {"target": _BLUE, "draft": _ORANGE},
    "kind": {"payload": _BLUE},
    "slot": {"evicted": _GREY, "merged away": _PINK, "host": _ORANGE, "merged into": _GREEN, "kept": _BLUE},
    "signal": {
        "entropy_raw": _BLUE, "entropy_sampled": _ORANGE, "drafted": _GREY, "accepted": _GREEN, "bits": _PINK,
        "reference": _PURPLE,
    },
    "arm": {"a": _BLUE, "b": _ORANGE},
}  # fmt: skip
_REST = (_ORANGE, _SKY, _PINK, _YELLOW, _RED, _GREEN, _BLUE, _PURPLE, _GREY)
# Viridis without its ends, which vanish on a dark or a white page; lightness rises throughout, so it reads in grey
SEQUENTIAL = ["#433e85", "#38588c", "#2d708e", "#25858e", "#1e9b8a", "#2ab07f", "#52c569", "#86d549", "#c2df23"]
# what figures are put on: page, text and grid of a theme; without one, text that reads on both pages
PAGES: dict[str | None, dict[str, str]] = {
    "light": {"page": "#ffffff", "text": "#1b1b1b", "grid": "#e6e6e6"},
    "dark": {"page": "#0b0f19", "text": "#e8e8e8", "grid": "#333845"},
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
    """Colours for names shown together: their own, else the palette's in turn (no two alike, up to nine)."""
    known = PALETTE[group]
    free = [c for c in _REST if c not in {known[name] for name in names if name in known}] or list(_REST)
    others = [name for name in names if name not in known]
    return {n: known[n] if n in known else free[others.index(n) % len(free)] for n in names}
