"""SpecDec++'s acceptance head: how likely the target accepts a token that a draft model proposed.

Along text, 85 % of the tokens give way to the draft model's proposals at their places, as in a draft; the draft model
reads the mixture, and its state after a proposal x is to tell min(1, p(x)/q(x)), rejections weighing 6. The
distributions are those along the text itself. Source: "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate
Lengths" (https://arxiv.org/abs/2405.19715; https://github.com/Kaffaljidhmah2/SpecDec_pp). Departure: half of the
windows are as at temperature 0, with the most probable token as proposal and agreement with the target's own as label.
"""

import math

import torch
import torch.nn.functional as F

from workbench.models.adapter import TransformersModel
from workbench.models.loading import companion
from workbench.speculation.heads import weights
from workbench.speculation.shapes.specdec import REJECTION, Acceptance
from workbench.training.data import Batch, drawn, width_of
from workbench.training.fit import Part, Recipe

KEPT = 0.15  # tokens of the text that stay, without loss


def acceptance(draft: str = "embedded-draft", blocks: int = 1) -> Part:
    """A head that tells how likely the target accepts what a draft model, by its name, has proposed."""

    def shape(lm: TransformersModel) -> dict:
        model = companion(lm, draft)
        return {"width": width_of(model), "blocks": blocks, "draft": draft, "probe": weights.probe(model)}

    def chances(module: Acceptance, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Logits and labels of all proposals, flat."""
        states, labels = proposals(companion(batch.lm, draft), batch, generator)
        return module(states.float()), labels

    def loss(module: Acceptance, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        logits, labels = chances(module, batch, generator)
        return -(labels * F.logsigmoid(logits) + REJECTION * (1 - labels) * F.logsigmoid(-logits)).mean()

    def figures(module: Acceptance, batch: Batch) -> dict[str, float]:
        """Mean chance of tokens that are accepted and of tokens that are rejected, and the share of the former."""
        logits, labels = chances(module, batch, torch.Generator(batch.lm.device).manual_seed(0))
        found = torch.sigmoid(logits + math.log(REJECTION))
        return {
            "accepted": labels.mean().item(),
            "chance if accepted": ((found * labels).sum() / labels.sum()).item(),
            "chance if rejected": ((found * (1 - labels)).sum() / (1 - labels).sum()).item(),
        }

    return Part(make=Acceptance, shape=shape, loss=loss, figures=figures, recipe=Recipe(tokens=400_000))


@torch.no_grad()
def proposals(draft: TransformersModel, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The draft model's states [n, d] after its proposals in the mixture, and their labels [n]."""
    text = batch.tokens
    q = draft.model(text, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    p = batch.dist[:, :-1]
    sampled = drawn(q, generator)
    greedy = torch.rand(len(text), 1, generator=generator, device=text.device) < 0.5
    proposed = torch.where(greedy, q.argmax(-1), sampled)
    ratio = (p - q).gather(-1, proposed[..., None])[..., 0].exp().clamp_max(1)
    labels = torch.where(greedy, (proposed == p.argmax(-1)).float(), ratio)
    mixed = torch.rand(proposed.shape, generator=generator, device=text.device) >= KEPT
    read = torch.cat([text[:, :1], torch.where(mixed, proposed, text[:, 1:])], 1)
    states = draft.model.base_model(read, use_cache=False).last_hidden_state[:, 1:]
    return states[mixed], labels[mixed]
