"""A short chain."""

SETTINGS = {"length": 3}
