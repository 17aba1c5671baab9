"""The words that figures write for the names a trace uses."""

WORDS = {
    "sibling_won": "another sibling won",
    "after_end": "after the end",
    "residual": "resampled",
    "bonus": "bonus",
    "host": "on the host",
    "dist": "drawn from q",
    "point": "put there by a rule",
}


def named(name: str) -> str:
    """A trace's name for something, as a reader says it: its own words, else the name without underscores."""
    return WORDS.get(name, name.replace("_", " "))
