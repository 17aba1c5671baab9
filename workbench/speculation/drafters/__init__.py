"""Drafters: who proposes the next tokens. One file per drafter."""

from workbench.speculation.drafters.aded import ADED
from workbench.speculation.drafters.aggressive import InputGuided
from workbench.speculation.drafters.base import Drafter, RowDrafter
from workbench.speculation.drafters.copyspec import CopySpec
from workbench.speculation.drafters.draft_model import DraftModel
from workbench.speculation.drafters.eagle import Eagle
from workbench.speculation.drafters.fuse import Fuse
from workbench.speculation.drafters.hydra import Hydra
from workbench.speculation.drafters.jacobi import Jacobi
from workbench.speculation.drafters.kangaroo import Kangaroo
from workbench.speculation.drafters.layer_skip import LayerSkip, search_skip
from workbench.speculation.drafters.medusa import Medusa
from workbench.speculation.drafters.prompt_lookup import PromptLookup
from workbench.speculation.drafters.recycling import TokenRecycling
from workbench.speculation.drafters.suffix import SuffixRetrieval

__all__ = [
    "CopySpec",
    "DraftModel",
    "Drafter",
    "Eagle",
    "Hydra",
    "Kangaroo",
    "LayerSkip",
    "Medusa",
    "RowDrafter",
    "search_skip",
    "ADED",
    "Fuse",
    "InputGuided",
    "Jacobi",
    "PromptLookup",
    "SuffixRetrieval",
    "TokenRecycling",
]
