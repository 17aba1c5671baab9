"""Verifiers: which drafted tokens stand, and what comes after them. One file per verifier."""

from workbench.speculation.verifiers.base import Outcome, Verifier
from workbench.speculation.verifiers.match import Greedy, Keyed
from workbench.speculation.verifiers.rejection import Rejection

__all__ = ["Greedy", "Keyed", "Outcome", "Rejection", "Verifier"]
