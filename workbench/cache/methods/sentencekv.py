"""Sentences whose keys the newest queries look for are read; the others wait on the host."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from workbench.cache.plan import CacheMethod, LayerView, Plan
from workbench.declare import register, setting
from workbench.errors import BadInput, Unsupported

ENDS = (".", "!", "?", "…", "。", "！", "？")
_marks: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()  # by tokenizer


@register("policy", "sentencekv")
@dataclass(frozen=True)
class SentenceKV(CacheMethod):
    """Keep every token, and read `budget` of them: the first, the newest, and those of the sentences that fit best.

    A sentence ends with a token that ends in `. ! ? …` or holds a line's end. Its key, per KV head, is the mean of its
    tokens' keys. At boundaries the mean query of the newest `recent` tokens is compared with these. Sentences are read
    from the best on, the last one cut where the budget ends. Pages of which nothing is read go to the host (`offload`).

    Source: "SentenceKV: Efficient LLM Inference via Sentence-Level Semantic KV Caching"
    (https://arxiv.org/abs/2504.00970; https://github.com/zzbright1998/SentenceKV). Departures: chooses every `interval`
    tokens and not at the ends of sentences, so that drafting leaves no trace; no tokens are dropped before; one query
    per KV head, the mean over its query heads.
    """

    budget: int = setting(512, ge=2, unit="slots", help="slots read per KV head, first and newest ones included")
    sinks: int = setting(32, ge=0, le=1024, unit="tokens", help="first tokens, always read")
    recent: int = setting(32, ge=1, le=1024, unit="tokens", help="newest tokens, always read, whose queries choose")
    interval: int = setting(32, ge=1, le=4096, unit="tokens", help="committed tokens between two choices")
    offload: bool = setting(True, help="pages of which nothing is read leave the device")
    ends: tuple[int, ...] | None = setting(None, help="ids that end a sentence; by default those whose text does")

    needs = frozenset({"queries", "marks"})
    ragged = True
    reads = "slots"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks + self.recent >= self.budget:
            raise BadInput(f"SentenceKV(budget={self.budget}): expected a budget above sinks={self.sinks} and "
                           f"recent={self.recent} together; raise it")  # fmt: skip

    @property
    def newest(self) -> int:
        return self.recent

    def next(self, length: int, prompt: int) -> int | None:
        return prompt if length < prompt else super().next(length, prompt)

    def marks(self, lm: Any) -> bytes:
        if self.ends is not None:
            return bytes(token in self.ends for token in range(lm.vocab_size))
        if lm.tokenizer is None:
            raise Unsupported(f"sentencekv reads where sentences end, and {lm.name!r} has no tokenizer: give ends=…, "
                              "their ids")  # fmt: skip
        if lm.tokenizer not in _marks:
            texts = (lm.tokenizer.decode([token]) for token in range(lm.vocab_size))
            _marks[lm.tokenizer] = bytes("\n" in text or text.rstrip(" ").endswith(ENDS) for text in texts)
        return _marks[lm.tokenizer]

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        n = view.live.shape[1]
        ends = view.stats["marks"][0].long()
        sentence = ends.cumsum(0) - ends  # of each token; nothing was dropped, so heads are alike
        memory = self._keys(view, sentence)
        means, query = memory["sums"] / memory["counts"][:, None], view.queries.mean(1, keepdim=True)
        rank = _rank(-(means * query.to(means.dtype)).sum(-1))[:, sentence]
        place = torch.arange(n, device=rank.device)
        rank[:, (place < self.sinks) | (place >= n - self.recent)] = -1
        unread = _rank(rank) >= budget
        return Plan(unread=unread, cold=unread if self.offload else None, memory=memory)

    @staticmethod
    def _keys(view: LayerView, sentence: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sums of the keys of each sentence, [Hk, sentences, D], and how many tokens those were."""
        known = int(view.memory["counts"].sum()) if view.memory else 0
        new = torch.arange(known, len(sentence), device=sentence.device)
        keys = view.keys(new.expand(len(view.live), -1))
        sums = keys.new_zeros(len(keys), int(sentence[-1]) + 1, keys.shape[2])
        if view.memory:
            sums[:, : view.memory["sums"].shape[1]] = view.memory["sums"]
        return {"sums": sums.index_add_(1, sentence[new], keys), "counts": sentence.bincount()}


def _rank(x: torch.Tensor) -> torch.Tensor:
    """The place of each in the order of its row, least first; of equals the earlier one."""
    return x.argsort(dim=-1, stable=True).argsort(dim=-1)
