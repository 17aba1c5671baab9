"""Judge decoding's head.

The paper labels tokens of right and wrong answers by hand; here one token in eight gives way to a draw of the target's
own at temperature 1.5, and the distribution at that place says what it is: sound if p(x) > 0.3 max p, a mistake if p(x)
< 0.01, else nobody asks. Reconstructed from the abstract; labels, thresholds and weights are ours.
"""

import torch
import torch.nn.functional as F

from workbench.speculation.verifiers.judge import JudgeHead
from workbench.training.data import Batch, drawn, width_of
from workbench.training.fit import Part, Recipe

EVERY = 8  # tokens between two that are planted
HEAT = 1.5
SOUND, MISTAKE = 0.3, 0.01


def judge() -> Part:
    """A head that tells sound tokens from mistakes, both planted in text."""
    return Part(JudgeHead, lambda lm: {"width": width_of(lm)}, loss, figures, Recipe(tokens=300_000))


@torch.no_grad()
def planted(batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's states [n, width] after planted tokens that are plainly sound or mistaken, and labels [n]."""
    text = batch.tokens.clone()
    at = torch.arange(EVERY, text.shape[1], EVERY, device=text.device)
    text[:, at] = drawn(batch.dist[:, at - 1] / HEAT, generator)
    read = Batch(batch.lm, text)  # the distributions before the planted tokens are those of the planted text
    p = read.dist[:, at - 1].exp()
    chosen = p.gather(-1, text[:, at, None])[..., 0]
    sound, mistake = chosen > SOUND * p.amax(-1), chosen < MISTAKE
    clear = sound | mistake
    return read.hidden[:, at][clear].float(), sound[clear].float()


def loss(module: JudgeHead, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Binary cross-entropy, both labels of equal weight in sum."""
    states, labels = planted(batch, generator)
    share = labels.mean().clamp(0.05, 0.95)
    weight = torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    return F.binary_cross_entropy_with_logits(module(states), labels, weight)


def figures(module: JudgeHead, batch: Batch) -> dict[str, float]:
    states, labels = planted(batch, torch.Generator(batch.lm.device).manual_seed(0))
    right = (module(states) > 0).float() == labels
    return {
        "sound ones accepted": right[labels > 0].float().mean().item(),
        "mistakes rejected": right[labels == 0].float().mean().item(),
    }
