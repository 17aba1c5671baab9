"""Comparisons of decoders in one process, replay of other drafts on a recorded run, and the losslessness meter."""

from workbench.experiments.compare import Arm, compare
from workbench.experiments.headroom import Costs, headroom
from workbench.experiments.lossless import Verdict, lossless

__all__ = ["Arm", "Costs", "Verdict", "compare", "headroom", "lossless"]
