"""A small tree."""

SETTINGS = {"max_nodes": 6, "width": 2, "depth": 3}
NEEDS = ("distributions", "branches")
