"""Copies one text."""

SETTINGS = {"ngram": 1}
GIVES = set()
