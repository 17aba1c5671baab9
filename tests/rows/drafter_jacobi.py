"""Guesses one chain."""

GIVES = {"confidence", "distributions", "alone"}
