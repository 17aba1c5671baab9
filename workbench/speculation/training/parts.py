"""The table of trainable parts: a new part is a new row."""

from workbench.speculation.training.acceptance import ACCEPTANCE
from workbench.speculation.training.fit import Part
from workbench.speculation.training.heads import EAGLE, FSPAD, HYDRA, MEDUSA
from workbench.speculation.training.judge import JUDGE
from workbench.speculation.training.kangaroo import KANGAROO

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
