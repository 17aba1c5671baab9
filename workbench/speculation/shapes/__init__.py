"""Draft shapes: how many tokens to draft, and where. One file per shape."""

from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.confidence import ConfidenceStop
from workbench.speculation.shapes.fixed import FixedLength, FixedTree

__all__ = ["ConfidenceStop", "DraftShape", "FixedLength", "FixedTree"]
