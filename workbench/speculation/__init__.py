"""Draft-then-verify decoding as a choice of three: a drafter, a draft shape and a verifier over one tree type."""

from workbench.speculation.drafters import CopySpec, Drafter, DraftModel
from workbench.speculation.shapes import ConfidenceStop, DraftShape, FixedLength, FixedTree
from workbench.speculation.tree import DIST, POINT, DraftTree
from workbench.speculation.verifiers import Greedy, Keyed, Outcome, Rejection, Verifier

__all__ = [
    "DIST",
    "POINT",
    "ConfidenceStop",
    "CopySpec",
    "DraftModel",
    "DraftShape",
    "DraftTree",
    "Drafter",
    "FixedLength",
    "FixedTree",
    "Greedy",
    "Keyed",
    "Outcome",
    "Rejection",
    "Verifier",
]
