"""Verifiers: which drafted tokens stand, and what comes after them. One file per verifier."""

from workbench.members import room

__getattr__ = room(__name__)
