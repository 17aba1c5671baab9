"""The table of trainable parts: a new part is a new row."""

from workbench.training.acceptance import ACCEPTANCE
from workbench.training.fit import Part
from workbench.training.heads import EAGLE, FSPAD, HYDRA, MEDUSA
from workbench.training.judge import JUDGE
from workbench.training.kangaroo import KANGAROO

__all__ = ["PARTS"]

PARTS: dict[str, Part] = {
    "acceptance": ACCEPTANCE,
    "eagle": EAGLE,
    "fspad": FSPAD,
    "hydra": HYDRA,
    "judge": JUDGE,
    "kangaroo": KANGAROO,
    "medusa": MEDUSA,
}
