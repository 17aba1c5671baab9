"""Readers: which pages of the cache each row attends to. One file per reader."""

from workbench.members import room

__getattr__ = room(__name__)
