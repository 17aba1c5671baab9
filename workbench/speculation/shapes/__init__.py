"""Draft shapes: how many tokens to draft, and where. One file per shape."""

from workbench.speculation.shapes.adaptive import AdaptiveConfidence
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.chains import IndependentChains
from workbench.speculation.shapes.confidence import ConfidenceStop
from workbench.speculation.shapes.del_ import Del
from workbench.speculation.shapes.dyspec import DySpec
from workbench.speculation.shapes.eagle2 import Eagle2
from workbench.speculation.shapes.fixed import FixedLength, FixedTree
from workbench.speculation.shapes.heuristic import HeuristicLength
from workbench.speculation.shapes.rsd_s import StochasticBeam
from workbench.speculation.shapes.sequoia import Sequoia
from workbench.speculation.shapes.specdec import SpecDec

__all__ = [
    "AdaptiveConfidence",
    "ConfidenceStop",
    "Del",
    "DraftShape",
    "DySpec",
    "Eagle2",
    "FixedLength",
    "FixedTree",
    "HeuristicLength",
    "IndependentChains",
    "Sequoia",
    "SpecDec",
    "StochasticBeam",
]
