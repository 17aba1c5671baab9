"""A small tree."""

SETTINGS = {"branching": (2, 2, 1)}
NEEDS = ("branches",)
