"""A short chain."""

SETTINGS = {"max_length": 4, "threshold": 0.4}
NEEDS = ("confidence",)
