"""A whole model, whose states can be read."""

GIVES = {"confidence", "distributions", "branches", "alone", "hidden"}
