"""A short chain."""

SETTINGS = {"start": 2}
