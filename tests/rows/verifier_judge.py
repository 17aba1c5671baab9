"""Lossy below 1."""

SETTINGS = {"threshold": 1.0}
