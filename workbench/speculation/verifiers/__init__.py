"""Verifiers: which drafted tokens stand, and what comes after them. One file per verifier."""

from workbench.speculation.verifiers.base import Outcome, Verifier
from workbench.speculation.verifiers.judge import Judge
from workbench.speculation.verifiers.kseq import KSeq
from workbench.speculation.verifiers.match import Greedy, PointMatch, SeededMatch
from workbench.speculation.verifiers.rejection import Rejection
from workbench.speculation.verifiers.typical import Typical

__all__ = ["Greedy", "Judge", "KSeq", "SeededMatch", "Outcome", "PointMatch", "Rejection", "Typical", "Verifier"]
