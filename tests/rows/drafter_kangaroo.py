"""Leaves the target after its first layer."""

SETTINGS = {"exits": (1,)}
GIVES = {"confidence", "distributions", "branches", "alone", "exits"}
