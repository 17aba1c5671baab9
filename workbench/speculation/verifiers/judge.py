"""Judge decoding: a trained head may let a draft stand that the exact test rejects. Lossy."""

from dataclasses import dataclass

import torch
from torch import nn

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.speculation.heads import weights
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.rejection import Rejection


class JudgeHead(nn.Module):
    """One linear layer: final hidden states [..., width] -> logits [...] of being a sound continuation."""

    def __init__(self, width: int):
        super().__init__()
        self.out = nn.Linear(width, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.out(states)[..., 0]


@register("verifier", "judge")
@dataclass(frozen=True)
class Judge(Rejection):
    """Accept a draft if rejection sampling does, or if a linear head on the target's state after it finds it sound.

    The head looks at the target's final hidden state at the draft's own node: not how likely the token was, but what
    the model makes of it. What only the head accepted is marked `lossy`; at threshold 1 this is rejection sampling.
    Inspired by "Judge Decoding: Faster Speculative Sampling Requires Going Beyond Model Alignment"
    (https://arxiv.org/abs/2501.19309), reconstructed from the abstract: threshold, training data and labels are
    ours; see `workbench.training.judge`. In a tree the first draft that the head finds sound stands before its later
    siblings are tested.
    """

    threshold: float = setting(0.5, ge=0, le=1, help="the head's probability from which a rejected draft stands")
    weights: str = setting(
        "embedded", trust="owner", help="the head: that of the embedded target, or a file or directory of weights"
    )

    needs = frozenset({"hidden"})
    reason = "judge"

    def guarantee(self, sampling: Sampling) -> str:
        return super().guarantee(sampling) if self.threshold == 1 else "lossy"

    def check(self, settings: Settings, lm: LanguageModel | None = None) -> None:
        if lm is not None:
            self._head(lm)

    def score_hidden(self, lm: LanguageModel, tree: DraftTree) -> None:
        tree.sound = torch.sigmoid(self._head(lm)(tree.hidden).float()).tolist()

    def rescues(self, tree: DraftTree, child: int) -> bool:
        return tree.sound[child] > self.threshold

    def _head(self, lm: LanguageModel) -> JudgeHead:
        return weights.load("judge", JudgeHead, self.weights, lm)
