"""The one type that drafters build, the target scores and verifiers walk. A chain is a tree.

Node 0 is the root: the pending token, committed as text but not yet in the cache. Two kinds of nodes make every
composition of drafter, shape and verifier lossless:

1. A DIST node was drawn from exactly the row stored with it, and no decision to keep, drop, reorder or merge it
   depended on its own value.
2. Anything else (argmax, top-k, copies, pruned samples) is a POINT node: accepted with its target probability.
"""

from dataclasses import dataclass, field

import torch

from workbench_kernels.verification.reference import children_of

DIST, POINT = "dist", "point"
MAX_NODES = 128


@dataclass(slots=True)
class DraftTree:
    """Columns over nodes, the root first.

    tokens: ids. parents: node numbers, −1 for the root, always smaller than the node's own. depths: 0 for the root.
    kinds: DIST or POINT. ranks: draw order among siblings (DIST before POINT). q: probability under the row the node
    was taken from (None for the root and where there is none). drafters: names. rows: parent -> log-probabilities [V]
    that its DIST children were drawn from, without replacement, exactly as sampled from. raw: parent -> the drafter's
    distribution there at temperature 1, for the record. confidence: parent -> its row's largest probability, where the
    shape reads it. draws: parent -> its children in draw order where the draws were independent: a child drawn twice is
    one node, and stands there twice.

    What scoring adds: hidden, the target's final states [n, width] after every node, where somebody wants them; slots,
    the number of each node's row among those staged in the target's cache (None: its own number); sound, what a
    verifier's trained head thinks of every node, in 0..1.
    """

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    kinds: list[str] = field(default_factory=lambda: [POINT])
    ranks: list[int] = field(default_factory=lambda: [0])
    q: list[float | None] = field(default_factory=lambda: [None])
    drafters: list[str] = field(default_factory=lambda: [""])
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    raw: dict[int, torch.Tensor] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)
    draws: dict[int, list[int]] = field(default_factory=dict)
    stop_reason: str | None = None
    hidden: torch.Tensor | None = None
    slots: list[int] | None = None
    sound: list[float] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, kind: str, q: float | None, drafter: str) -> int:
        """Append a child and return its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.kinds.append(kind)
        self.ranks.append(sum(p == parent for p in self.parents) - 1)
        self.q.append(q)
        self.drafters.append(drafter)
        return len(self.tokens) - 1

    def children(self, node: int) -> list[int]:
        """In the order they are to be tested: DIST in draw order, then POINT; POINT copies of DIST tokens dropped."""
        return children_of(node, self.tokens, self.parents, [kind == DIST for kind in self.kinds])

    def tests(self, node: int) -> list[int]:
        """`children`, with every one of several independent draws of a token where it was drawn."""
        drawn = self.draws.get(node, [])
        return drawn + [child for child in self.children(node) if child not in drawn]

    def path(self, node: int) -> list[int]:
        """Nodes from below the root down to `node`."""
        out = []
        while node > 0:
            out.append(node)
            node = self.parents[node]
        return out[::-1]

    @property
    def is_chain(self) -> bool:
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def ancestors(self) -> torch.Tensor:
        """[n, n] bool: row i sees itself and its ancestors."""
        parents = torch.tensor(self.parents).clamp_min(0)
        mask = self_only = torch.eye(len(self), dtype=torch.bool)
        for _ in range(max(self.depths)):
            mask = self_only | mask[parents]
        return mask
