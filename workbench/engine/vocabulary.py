"""Which ids a model reads and writes, and what that asks of two models in one decoder.

A vocabulary is as wide as the model's matrix, which is often padded beyond its tokenizer, by another amount in each
size of a family. What counts is that both tokenizers mean the same by every id that both know.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workbench.engine.model import LanguageModel, kept
from workbench.errors import BadInput

if TYPE_CHECKING:
    from workbench.engine.distribution import Distribution

NEVER = -1e30  # the logit of an id that a draft does not have: finite, as processors expect, and of no probability


def readable(lm: LanguageModel, tokens: Sequence[int]) -> list[int]:
    """Ids as a model reads them that may not know them all: those beyond its embeddings count as its last one."""
    last = lm.ids_read - 1
    return [min(token, last) for token in tokens]


def refuse_other_vocabulary(lm: LanguageModel, other: LanguageModel) -> None:
    """Raise BadInput where two models do not mean the same by the ids that both know. Without two tokenizers to tell,
    their matrices must be equally wide."""
    readers = [(m.tokenizer, len(m.tokenizer) if hasattr(m.tokenizer, "__len__") else 0) for m in (lm, other)]
    if kept(lm, ("vocabulary", *readers, lm.vocab_size, other.vocab_size), lambda: _agree(lm, other)):
        return
    raise BadInput(
        f"{lm.name!r} and {other.name!r} have different vocabularies ({lm.vocab_size} and {other.vocab_size}"
        " tokens); expected two models that share one tokenizer"
    )


def _agree(lm: LanguageModel, other: LanguageModel) -> bool:
    ours, theirs = (getattr(m.tokenizer, "get_vocab", lambda: None)() for m in (lm, other))
    if ours is None or theirs is None:
        return lm.vocab_size == other.vocab_size
    small, large = sorted((ours, theirs), key=len)
    return bool(small) and all(large.get(token) == number for token, number in small.items())


def cut(logits: torch.Tensor, size: int) -> torch.Tensor:
    """[..., V'] -> what there is of the first `size` ids; before any distribution is made of them, so that it sums to
    one."""
    return logits[..., :size]


def widened(logits: torch.Tensor, size: int) -> torch.Tensor:
    """[R, V'] -> [R, size] logits: ids beyond are cut, ids that are lacking will never be drawn."""
    logits = cut(logits, size)
    lacking = size - logits.shape[-1]
    if not lacking:
        return logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.cat([logits, logits.new_full((len(logits), lacking), NEVER)], -1)


def known_only(dist: "Distribution", known: int) -> "Distribution":
    """A distribution over logits that were `widened` from the first `known` ids: the others get no probability at
    all."""
    for rows in {id(rows): rows for rows in (dist.raw, dist.scores)}.values():
        rows[..., known:] = -torch.inf
    return dist
