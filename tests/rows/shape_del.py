"""A short chain."""

SETTINGS = {"max_length": 4}
NEEDS = ("confidence", "exits")
