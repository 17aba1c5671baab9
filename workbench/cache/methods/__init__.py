"""Cache policies: which tokens stay. One file per policy."""

from workbench.members import room

__getattr__ = room(__name__)
