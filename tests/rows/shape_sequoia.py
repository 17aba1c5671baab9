"""A small tree."""

SETTINGS = {"max_nodes": 6, "depth": 3}
NEEDS = ("branches",)
