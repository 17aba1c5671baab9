"""Drafters: who proposes the next tokens. One file per drafter."""

from workbench.speculation.drafters.base import Drafter
from workbench.speculation.drafters.copyspec import CopySpec
from workbench.speculation.drafters.draft_model import DraftModel

__all__ = ["CopySpec", "DraftModel", "Drafter"]
