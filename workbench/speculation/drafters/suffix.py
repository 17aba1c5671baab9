"""Look the longest known ending of the text up, in the text itself and in a corpus of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.drafters.corpus import ORDER, look_again, suffix_index
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.tree import DraftTree


@register("drafter", "suffix")
@dataclass(frozen=True)
class SuffixRetrieval(Drafter):
    """Draft what followed the longest ending of the text that occurs earlier in it, or in a corpus: a trie of all
    continuations, those seen most often first, as many nodes as the shape has.

    The longer of the two endings wins; where they are alike both are used. A short ending promises little, so a draft
    goes at most `factor` times its length ahead. The corpus is read once per process and indexed by a suffix array over
    the reversed text. Nodes are POINT. Sources: "REST: Retrieval-Based Speculative Decoding"
    (https://arxiv.org/abs/2311.08252; https://github.com/FasterDecoding/REST); the bound by length is that of
    "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications" (https://arxiv.org/abs/2411.04975;
    https://github.com/snowflakedb/ArcticInference).
    """

    corpus: str = setting("", trust="owner", help="a text file, or a directory of them (empty: the text so far alone)")
    megabytes: int = setting(16, ge=1, le=1024, unit="MB", help="text read of the corpus, at most")
    shortest: int = setting(2, ge=1, le=ORDER, unit="tokens", help="shortest ending looked up")
    longest: int = setting(16, ge=1, le=ORDER, unit="tokens", help="longest ending looked up")
    factor: float = setting(3.0, gt=0, le=64, help="levels drafted per token of the ending found")
    matches: int = setting(64, ge=1, le=5000, help="occurrences in the corpus that are counted, spread evenly")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest > self.longest:
            raise BadInput(f"SuffixRetrieval: shortest={self.shortest} lies above longest={self.longest}")

    def default_shape(self) -> DraftShape:
        return FixedTree((2, 1, 1, 1))

    def check(self, lm: LanguageModel) -> None:
        if self.corpus:
            look_again(self.corpus, lm.tokenizer)
            suffix_index(self.corpus, lm.tokenizer, self.megabytes)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        tokens, index = state.tokens, None
        length, ends = longest_match(tokens, self.longest)
        if self.corpus:
            index = suffix_index(self.corpus, state.runners["target"].model.tokenizer, self.megabytes)
            known, places = index.find(tokens, self.shortest, self.longest)
        if index is None or known < length:
            known, places = 0, np.empty(0, dtype=np.int64)
        best = max(length, known)
        if best < self.shortest:
            return self.trie(state, shape, [], depth)
        ahead = min(depth, shape.budget, int(best * self.factor) or 1)
        runs: list[list[int]] = []
        if len(places):
            chosen = places[np.linspace(0, len(places) - 1, min(self.matches, len(places))).astype(np.int64)]
            runs = index.following(chosen, ahead)
        if length == best:
            runs += [tokens[end : end + ahead] for end in ends[: -self.matches - 1 : -1]]  # the latest first
        paths = paths_by_count(runs, shape.budget, "branches" in shape.needs)
        return self.trie(state, shape, paths if "branches" in shape.needs else paths[-1:], depth)


def longest_match(tokens: Sequence[int], most: int) -> tuple[int, list[int]]:
    """The longest ending of `tokens`, of at most `most`, that occurs earlier: its length, and where each occurrence
    ends (the place of the token after it), from first to last. (0, []) where there is none.

    >>> longest_match([1, 2, 3, 9, 2, 3, 1, 2, 3], 8)
    (3, [3])
    """
    ids = np.asarray(tokens)
    ends, length = np.flatnonzero(ids[:-1] == ids[-1]), 0
    while len(ends) and length < most:
        found, length = ends, length + 1
        ends = ends[ends >= length]
        ends = ends[ids[ends - length] == ids[-1 - length]] if length < len(ids) else ends[:0]
    return (length, (found + 1).tolist()) if length else (0, [])


def paths_by_count(runs: Sequence[Sequence[int]], most: int, branches: bool = True) -> list[list[int]]:
    """The `most` beginnings that most of the runs share, each a token longer than the empty one or one before it; of
    equals the one met first. Where `branches` is false, the commonest token alone goes on.

    >>> paths_by_count([[5, 6], [5, 7], [5, 7], [8]], 3)
    [[5], [5, 7], [8]]
    """
    heap: list[tuple[int, int, list[int], list[Sequence[int]]]] = []
    number = 0

    def extend(path: list[int], sharing: Sequence[Sequence[int]]) -> None:
        nonlocal number
        groups: dict[int, list[Sequence[int]]] = {}
        for run in sharing:
            if len(run) > len(path):
                groups.setdefault(run[len(path)], []).append(run)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        for token, members in ordered if branches else ordered[:1]:
            number += 1
            heappush(heap, (-len(members), number, [*path, token], members))

    extend([], runs)
    paths: list[list[int]] = []
    while heap and len(paths) < most:
        _, _, path, members = heappop(heap)
        paths.append(path)
        extend(path, members)
    return paths
