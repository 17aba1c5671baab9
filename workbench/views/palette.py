"""One palette for every face: Okabe and Ito's, safe for the colour-blind; a symbol or a name stands beside each."""

__all__ = ["PALETTE", "SEQUENTIAL", "as_dict", "colour", "colours"]

_BLACK, _ORANGE, _SKY, _GREEN = "#1b1b1b", "#e69f00", "#56b4e9", "#009e73"
_YELLOW, _BLUE, _RED, _PINK, _GREY = "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8a8a8a"

PALETTE: dict[str, dict[str, str]] = {
    "source": {"target": _BLUE, "bonus": _GREEN, "residual": _RED, "draft": _ORANGE},  # draft: any drafter's name
    "fate": {
        "accepted": _GREEN, "rejected": _RED, "sibling_won": _SKY, "parent_rejected": _GREY, "pruned": _PINK,
        "after_end": _YELLOW,
    },
    "phase": {"prefill": _GREY, "draft": _ORANGE, "target": _BLUE, "score": _PINK},
    "model": {"target": _BLUE, "draft": _ORANGE},
    "kind": {"payload": _BLUE},
    "signal": {"entropy_raw": _BLUE, "entropy_sampled": _ORANGE, "drafted": _GREY, "accepted": _GREEN, "bits": _PINK},
}  # fmt: skip
_REST = (_ORANGE, _SKY, _PINK, _YELLOW, _RED, _GREEN, _BLUE, _BLACK, _GREY)
SEQUENTIAL = "Viridis"  # reads the same in grey


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


def as_dict() -> dict[str, dict[str, str]]:
    """The palette as plain data, for the token strip in the browser."""
    return {group: dict(names) for group, names in PALETTE.items()}
