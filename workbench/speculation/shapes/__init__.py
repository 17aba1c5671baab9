"""Draft shapes: how many tokens to draft, and where. One file per shape."""

from workbench.members import room

__getattr__ = room(__name__)
