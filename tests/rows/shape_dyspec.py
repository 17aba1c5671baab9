"""A small tree."""

SETTINGS = {"max_nodes": 4}
NEEDS = ("distributions", "branches")
