"""One of two layers is left out."""

SETTINGS = {"skip": (1,)}
