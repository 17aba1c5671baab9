"""A decode round that copies to the host once: drafting, scoring, verification and commit on the device.

The host uploads three numbers (length, last two tokens), launches the round, and receives one packed tensor: tokens,
what plain decoding takes in every row, which path stands, and the statistics that the trace records. On a GPU the whole
round is one captured CUDA graph per (tree, capacity of the caches, sampling settings); on a CPU the same code runs as
it is. A plain round is a tree of one node.
"""

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.device.graph import Replayed
from workbench.device.sampling import DeviceDistributions, DeviceSampling, fit
from workbench.device.store import LiveRows, StaticRun
from workbench.engine.distribution import divergences
from workbench.engine.vocabulary import cut
from workbench.speculation.tree import POINT, DraftTree
from workbench_kernels import verification

if TYPE_CHECKING:
    from workbench.device.model import DeviceModel


@dataclass(frozen=True)
class DeviceTree:
    """A draft tree whose form is known beforehand: every node of depth d has branching[d] children; () is no draft.

    Nodes are numbered by depth, then by parent. drafter: who drafts, for the record. seeded: children are what the
    target's own noise would pick, and stand where plain decoding takes them; else they are drawn from the drafter's
    distribution, and tested by rejection (in Triton alone).
    """

    branching: tuple[int, ...] = ()
    drafter: str = ""
    seeded: bool = True

    @cached_property
    def levels(self) -> list[range]:
        """Node numbers by depth, the root's first."""
        out = [range(1)]
        for factor in self.branching:
            out.append(range(out[-1].stop, out[-1].stop + len(out[-1]) * factor))
        return out

    @cached_property
    def form(self) -> DraftTree:
        """Its nodes, which have no tokens yet."""
        tree = DraftTree([0])
        for level, factor in zip(self.levels, self.branching, strict=False):
            for node in (node for node in level for _ in range(factor)):
                tree.add(node, 0, POINT, None, self.drafter)
        return tree

    @property
    def parents(self) -> list[int]:
        return self.form.parents

    @property
    def nodes(self) -> int:
        return self.levels[-1].stop

    @property
    def expanded(self) -> int:
        """Nodes that have children: those the drafter reads, the root included."""
        return self.levels[-1].start

    @property
    def depth(self) -> int:
        return len(self.branching)


class DeviceRound:
    """One kind of round over the caches of one sequence, to be called again and again.

    Parameters
    ----------
    template: the draft's form. sampling: how tokens are drawn. figures: compute what the trace records.
    target, draft: a model and the run its keys lie in, which the round does not keep alive; no draft for a template
    of one node.
    implementation: of attention and verification, `auto`, `triton` or `torch`.
    """

    def __init__(
        self,
        template: DeviceTree,
        sampling: DeviceSampling,
        figures: bool,
        target: "tuple[DeviceModel, StaticRun]",
        draft: "tuple[DeviceModel, StaticRun] | None" = None,
        implementation: str = "auto",
    ):
        self.template, self.sampling = template, sampling
        self._figures, self._implementation = figures, implementation
        (self.model, run), (self.draft_model, draft_run) = target, draft or (None, None)
        self.run, self.draft_run = weakref.proxy(run), draft_run and weakref.proxy(draft_run)
        self.device = device = self.model.device
        pinned = device.type == "cuda"
        self._upload = torch.zeros(3, dtype=torch.int64, pin_memory=pinned)
        self._inputs = torch.zeros(3, dtype=torch.int64, device=device)  # root's position, token before it, its token
        self._depths = torch.tensor(template.form.depths, device=device)
        self._parents = torch.tensor(template.parents, device=device)
        self._numbers = torch.arange(template.nodes, device=device)
        seen = template.form.ancestors()
        self._rows = LiveRows(run, seen, 0, implementation)
        self._draft_rows = []
        if draft:
            pair = torch.ones(2, 2, dtype=torch.bool).tril()
            self._draft_rows = [LiveRows(draft_run, pair, 0, implementation)]
            for level in template.levels[1:-1]:
                visible = seen[level.start : level.stop, : level.stop]
                self._draft_rows.append(LiveRows(draft_run, visible, level.start, implementation))
        self._layout: list[tuple[str, torch.Size]] = []
        self.replayed = Replayed(self._compute, device)

    def __call__(self, root: int, before: int, pending: int) -> dict[str, np.ndarray]:
        """One round. root: position of the pending token; before: the token before it (read by a draft model only).

        The target's run holds `root` slots, the draft's at least root − 1, the last of which is computed again.
        Returns, by name: finite [1] (else nothing of the rest means anything); tokens, choice, exists [N]: the tree,
        what plain decoding takes in each row, which nodes there are (a cut distribution may run out of tokens); path
        [depth], the accepted nodes, −1 behind them; their rows lie behind the root's in both runs. For rejection:
        source [1] and fates, reasons, us [N] as of `verification.Outcome`. With figures: removed [N, filters], table
        [N, ·] of `distribution.figures`, and for drafts q, p, entropies, tv and kl, each [N − 1].
        """
        self._upload[0], self._upload[1], self._upload[2] = root, before, pending
        self._inputs.copy_(self._upload, non_blocking=True)
        with ExitStack() as locks:
            for model in sorted({self.model, self.draft_model} - {None}, key=id):  # in one order: no deadlock
                locks.enter_context(model.lock)
            packed = self.replayed()
        host = to_host(packed)
        out, start = {}, 0
        for name, shape in self._layout:
            out[name] = host[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
        return out

    @property
    def implementation(self) -> str:
        """What computes the attention, and how: for the record."""
        query = self.run.k[0][None, :, :1]
        how = "graph" if self.replayed.captured else "device"
        return f"{how}+{'triton' if self._rows.choice(query).name == 'triton' else 'sdpa'}"

    @torch.inference_mode()
    def _compute(self) -> torch.Tensor:
        """The round, on the device alone; repeatable, since it writes behind the committed slots only (and, in the
        draft's run, the last of them with what it holds)."""
        root = self._inputs[:1]
        tokens, exists, proposals, sane, facts = self._draft(root)
        logits = self.model.forward(tokens, root + self._depths, self._rows.at(root))
        choice, dists = self.sampling.decide(logits, root + 1 + self._depths)
        fates: dict[str, torch.Tensor] = {}
        if self.template.seeded:
            path = self._walk(tokens, exists, choice)
        else:
            path, choice, fates = self._reject(root, tokens, exists, dists, proposals)
        if not self.template.form.is_chain:
            self._commit(root, path)
        packed = {"finite": (sane & dists.finite)[None], "tokens": tokens, "choice": choice, "exists": exists}
        packed |= {"path": path, **fates}
        if self._figures:
            packed |= {"removed": dists.removed, "table": self.sampling.figures(dists, choice), **facts}
            if proposals is not None:
                packed |= self._compare(dists, proposals, tokens)
        self._layout = [(name, tensor.shape) for name, tensor in packed.items()]
        return torch.cat([tensor.flatten().double() for tensor in packed.values()])

    def _draft(self, root: torch.Tensor):
        """-> tokens and existence of all nodes [N]; the drafter's distributions (raw, scores) after the nodes it read,
        on the target's vocabulary; whether its logits were finite; q of every draft."""
        template, sampling = self.template, self.sampling
        tokens, exists = [self._inputs[2:]], [torch.ones(1, dtype=torch.bool, device=self.device)]
        sane = exists[0][0]
        if not template.depth:
            return tokens[0], exists[0], None, sane, {}
        raws, rows, qs = [], [], []
        ids, positions, live = self._inputs[1:], torch.cat([root - 1, root]), self._draft_rows[0].at(root - 1)
        for depth, count in enumerate(template.branching):
            parents = len(template.levels[depth])
            known = ids.clamp(max=self.draft_model.ids_read - 1)  # as on the host: `vocabulary.readable`
            logits = self.draft_model.forward(known, positions, live, last=1 if depth == 0 else 0)
            dists = sampling.dists(cut(logits, self.model.vocab_size))
            dists.raw, dists.scores = (fit(part, self.model.vocab_size) for part in (dists.raw, dists.scores))
            place = (root + depth + 1).expand(parents)
            drawn, found = sampling.draw(dists, place, count, "target" if template.seeded else "draft")
            known = dists.raw if sampling.greedy else dists.scores
            qs.append(known.gather(-1, drawn).exp().flatten())
            tokens.append(drawn.flatten())
            exists.append((found & exists[-1][:, None]).flatten())
            sane = sane & dists.finite
            raws.append(dists.raw)
            rows.append(dists.scores)
            if depth + 1 < template.depth:
                ids, live = tokens[-1], self._draft_rows[depth + 1].at(root)
                positions = (root + depth + 1).expand(len(ids))
        return torch.cat(tokens), torch.cat(exists), (torch.cat(raws), torch.cat(rows)), sane, {"q": torch.cat(qs)}

    def _walk(self, tokens: torch.Tensor, exists: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """int64 [depth]: from the root on, the child that is what plain decoding takes; −1 from where there is none."""
        stands = torch.ones(1, dtype=torch.bool, device=self.device)
        path = []
        for depth, level in enumerate(self.template.levels[1:]):
            above = self.template.levels[depth].start
            nodes = slice(level.start, level.stop)
            parents = self._parents[nodes]
            stands = stands[parents - above] & exists[nodes] & (tokens[nodes] == choice[parents])
            path.append(self._numbers[nodes].masked_fill(~stands, -1).amax(0, keepdim=True))  # siblings differ
        return torch.cat(path) if path else self._numbers[:0]

    def _reject(self, root, tokens, exists, dists: DeviceDistributions, proposals):
        """-> path [depth] as of `_walk`, the token that follows every row of it [N], and what became of the nodes."""
        greedy, template = self.sampling.greedy, self.template
        rows = self._numbers.masked_fill(self._numbers >= template.expanded, -1)
        kinds = torch.full_like(self._numbers, verification.POINT if greedy else verification.DIST)
        scores = dists.scores
        if greedy:  # the point mass on the argmax
            scores = torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
        columns = (scores, tokens, self._parents.masked_fill(~exists, -1), self._depths, kinds, rows)
        options = {"width": max(template.branching), "implementation": self._implementation}
        held = (root + 1, proposals[1], self.sampling.seed)
        found = verification.verify(*(column[None] for column in columns), *held, **options)
        accepted = found.fates[0] == verification.FATES.index("accepted")
        follows = accepted & (self._parents == self._numbers[:, None])  # [row, the child that stands after it]
        # a distribution of NaN gives no token, and `finite` says so
        token = found.token.clamp(0, self.model.vocab_size - 1)
        choice = torch.where(follows.any(1), (follows * tokens).sum(1), token)
        fates = {"source": found.source, "fates": found.fates[0], "reasons": found.reasons[0], "us": found.us[0]}
        return found.path[0, : template.depth].long(), choice, fates

    def _commit(self, root: torch.Tensor, path: torch.Tensor) -> None:
        """Move the accepted nodes' rows behind the root's."""
        own = self._numbers[1 : len(path) + 1]
        sources = torch.where(path >= 0, path, own)
        self.run.move(root + sources, root + own)
        fed = len(path) - 1  # the drafter has not read the leaves
        if fed:
            self.draft_run.move(root + sources[:fed], root + own[:fed])

    def _compare(
        self, dists: DeviceDistributions, proposals: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Target against draft after every node with children, told for each child: see `Distribution.compare`."""
        fed, parents = self.template.expanded, self._parents[1:]
        raw, target = (rows[:fed] for rows in (dists.raw, dists.raw if self.sampling.greedy else dists.scores))
        facts = divergences(raw, target, proposals[0], proposals[0 if self.sampling.greedy else 1])
        columns = {name: values[parents] for name, values in facts.items()}
        return {"p": target[parents, tokens[1:]].exp(), **columns}


def to_host(packed: torch.Tensor) -> np.ndarray:
    """The one copy of a round."""
    return packed.cpu().numpy()
