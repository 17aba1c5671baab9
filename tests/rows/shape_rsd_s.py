"""A small tree."""

SETTINGS = {"width": 2, "depth": 3}
NEEDS = ("distributions", "branches")
