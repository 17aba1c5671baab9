"""A draft under way: the tree so far and the drafter's distributions, between a drafter with distributions and a shape
that asks."""

from collections.abc import Callable, Sequence

import torch

from workbench.engine.distribution import Distribution, draw
from workbench.engine.vocabulary import known_only, widened
from workbench.rounds import Round, State
from workbench.speculation.tree import DIST, MAX_NODES, POINT, DraftTree
from workbench_kernels.noise import reference as noise

BEST = 8  # proposals after each row that level `full` keeps, in the order they would be drafted
DROPPED = MAX_NODES + 1  # node number recorded for rows whose node was pruned
Distributions = Callable[["TreeBuilder", list[int]], torch.Tensor]


class TreeBuilder:
    """What a shape grows a tree with; one object per round.

    tree: the nodes so far. depth: the most levels. memory: the decoding state's, for figures that last longer than the
    round. greedy: the run takes argmaxes. seeded: drafts should be what the target's own seeded noise would pick.
    expanded: nodes whose distributions are known, in the order they were read (-1: dropped since), the root included.
    features: node -> the drafter's hidden state [d] after it, for nodes below the root, where a shape reads them.
    """

    def __init__(
        self,
        name: str,
        state: State,
        r: Round,
        depth: int,
        seeded: bool,
        logits: Distributions,
        needs: frozenset[str] = frozenset(),
    ):
        """logits(builder, nodes) gives the drafter's logits [n, V'] after nodes whose ancestors were all read before;
        needs: the shape's: `tree.confidence` is filled in here, `features` by the drafter."""
        self.name, self.state, self.round, self.depth, self.seeded = name, state, r, depth, seeded
        self.tree = DraftTree([state.pending])
        self.memory = state.memory
        self.greedy = r.settings.sampling.greedy
        self.seed, self.purpose = r.settings.noise_seed, "target" if seeded else "draft"
        self.base = len(state.tokens) - 1  # absolute position of the root
        self.expanded: list[int] = []
        self.features: dict[int, torch.Tensor] | None = {} if "features" in needs else None
        self._logits, self._confidence = logits, "confidence" in needs
        self._vocab = state.runners["target"].model.vocab_size

    def expand(self, nodes: Sequence[int]) -> None:
        """Learn the drafter's distributions after nodes, in one pass; those known already are left out."""
        new = [node for node in nodes if node not in self.tree.rows]
        if new:
            logits = self._logits(self, new)
            self.expanded += new
            self._learn(new, logits)

    def _learn(self, nodes: list[int], logits: torch.Tensor) -> None:
        """Note the distributions after nodes from logits [n, V']: under the run's own sampling settings, and raw."""
        tree, tokens = self.tree, self.state.tokens
        dist = self._distribution(logits, lambda row: tokens + [tree.tokens[n] for n in tree.path(nodes[row])])
        if self._confidence:
            tree.confidence |= zip(nodes, dist.raw.amax(-1).exp().tolist(), strict=True)
        for row, node in enumerate(nodes):
            tree.raw[node], tree.rows[node] = dist.raw[row], dist.scores[row]
        if self.round.settings.level == "full":
            places, best = [self.place(node) for node in nodes], [self.best(node, BEST) for node in nodes]
            self._keep(dist.raw[:, : logits.shape[-1]], nodes, places, best)

    def overread(self, logits: torch.Tensor, places: Sequence[int]) -> None:
        """At level `full`, note what the drafter would have proposed where it was not asked: logits [m, V'] that
        predict the tokens at absolute positions `places`, all of them text by now."""
        if self.round.settings.level != "full" or not len(logits):
            return
        dist = self._distribution(logits, lambda row: self.state.tokens[: places[row]])
        best = [self._best(dist.scores[i], place, BEST) for i, place in enumerate(places)]
        self._keep(dist.raw[:, : logits.shape[-1]], [-1] * len(logits), list(places), best)

    def _distribution(self, logits: torch.Tensor, prefixes: Callable[[int], Sequence[int]]) -> Distribution:
        """The distributions of a drafter's logits [n, V'], on the target's vocabulary from the beginning: what is cut
        off or lacking must not count in any cut."""
        known = logits.shape[-1]
        dist = self.round.dist(widened(logits, self._vocab), prefixes)
        if known < self._vocab:
            known_only(dist, known)
            if dist.allowed is not None:  # where a constraint leaves nothing that it knows, it guesses without
                empty = (dist.scores == -torch.inf).all(-1, keepdim=True)
                dist.scores.copy_(torch.where(empty, dist.raw, dist.scores))
        return dist

    def _keep(self, raw: torch.Tensor, nodes: list[int], places: list[int], best: list[list[int]]) -> None:
        self.round.keep_rows("draft", raw, {"position": places, "node": nodes, "best": best})

    def children(self, parent: int, count: int) -> list[int]:
        """Append `count` more children of an expanded node: the best ones at temperature 0, else draws without
        replacement.

        The draws are seeded: under `seeded` by the target's own noise at that position (POINT nodes), else by the
        drafter's (DIST nodes).
        """
        have = sum(p == parent for p in self.tree.parents)
        return [self.add(parent, token) for token in self.best(parent, have + count)[have:]]

    def best(self, parent: int, count: int, branch: int = 0) -> list[int]:
        """`count` tokens of the distribution after an expanded node: the most probable, or draws in draw order.
        Nothing is appended.

        branch: draws of different branches are independent of each other. Whoever decides about one node by what was
        drawn at another of the same depth must use a branch for each (the parent's number will do), else the decision
        has seen the node's own noise.
        """
        return self._best(self.tree.rows[parent], self.place(parent), count, branch)

    def _best(self, row: torch.Tensor, place: int, count: int, branch: int = 0) -> list[int]:
        if self.greedy:
            return [int(row.argmax())] if count == 1 else row.topk(min(count, len(row))).indices.tolist()
        drawn = draw(row, self.seed, self.purpose, place, count, self.branch(branch))
        return [drawn] if count == 1 else drawn

    def gumbel(self, parent: int, branch: int = 0) -> torch.Tensor:
        """[V] the noise that `best` adds to the log-probabilities of the distribution after a node."""
        ids = torch.arange(self._vocab, device=self.tree.rows[parent].device)
        return noise.gumbel(self.seed, self.purpose, self.place(parent), ids, self.branch(branch))

    def estimate(self, node: int) -> torch.Tensor:
        """[V] log-probabilities that the target goes on with each token after an expanded node, as far as the drafter
        can tell: its distribution, under the noise that will pick the token where that is known (`seeded`)."""
        if self.greedy:
            return self.tree.raw[node]
        row = self.tree.rows[node]
        return (row + self.gumbel(node)).log_softmax(-1) if self.seeded else row

    def unique_branch(self, node: int) -> int:
        """A branch of its own for the draws after a node: no other node of this round or any other has it."""
        return (self.base + 1) * (MAX_NODES + 1) + node

    def keep(self, nodes: Sequence[int]) -> None:
        """Drop all nodes but these and the root; nothing is expanded any more. `nodes` hold the parents of their
        members; where nodes are dropped for their own values, those that stay must be POINT."""
        old, tree = [0, *sorted(nodes)], self.tree
        new = {node: number for number, node in enumerate(old)}
        kept = self.tree = DraftTree([tree.tokens[0]], stop_reason=tree.stop_reason)
        for node in old[1:]:
            kept.add(new[tree.parents[node]], tree.tokens[node], tree.kinds[node], tree.q[node], tree.drafters[node])
        for name in ("rows", "raw", "confidence"):
            setattr(kept, name, {new[node]: value for node, value in getattr(tree, name).items() if node in new})
        self.expanded = [new.get(node, -1) for node in self.expanded]
        if held := self.round.step.rows.get("draft"):
            held["node"] = [new.get(node, DROPPED) if node >= 0 else node for node in held["node"]]

    def branch(self, number: int) -> int:
        """Seeded drafts all use the one noise that the target will use."""
        return 0 if self.seeded else number

    def place(self, parent: int) -> int:
        """Absolute position of a node's children."""
        return self.base + self.tree.depths[parent] + 1

    def add(self, parent: int, token: int, kind: str | None = None) -> int:
        """Append a child. kind: DIST where it was drawn from the parent's whole row by nothing but chance (the default
        where draws are), else POINT."""
        if kind is None:
            kind = POINT if self.greedy or self.seeded else DIST
        rows = self.tree.raw if self.greedy else self.tree.rows
        q = rows[parent][token].exp().item() if parent in rows else None
        return self.tree.add(parent, token, kind, q, self.name)

    def positions(self, nodes: Sequence[int]) -> list[int]:
        """Absolute positions of nodes."""
        return [self.base + self.tree.depths[node] for node in nodes]

    def visible(self, nodes: Sequence[int], staged: Sequence[int]) -> torch.Tensor | None:
        """What nodes see of the staged ones, as `CacheStore.begin` takes it: themselves and their ancestors."""
        return None if self.tree.is_chain else self.tree.ancestors()[list(nodes)][:, list(staged)]
