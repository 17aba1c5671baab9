"""Copies one text."""

SETTINGS = {"ngram": 2}
GIVES = set()
