"""Drafters: who proposes the next tokens. One file per drafter."""

from workbench.members import room

__getattr__ = room(__name__)
