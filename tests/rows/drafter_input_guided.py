"""Copies one text."""

SETTINGS = {"align": 1}
GIVES = set()
