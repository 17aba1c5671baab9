"""The key-value store behind a fixed protocol: stage, commit, discard, segments, fork, ledger; policies and stacks."""

from workbench.members import room

__getattr__ = room(__name__)
