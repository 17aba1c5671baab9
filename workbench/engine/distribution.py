"""The model's next-token distribution beside the one sampled from, with the statistics that the trace records.

All entropies are in nats, in fp32 or wider; entr(p) = −p log p is 0 at p = 0, so cut tokens do no harm.
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch

from workbench_kernels.distribution import native
from workbench_kernels.noise import reference as noise

TOP = 5


class Distribution:
    """The distributions of R rows over a vocabulary of V.

    Attributes
    ----------
    raw: [R, V] log-probabilities of the model at temperature 1, nothing cut.
    scores: [R, V] log-probabilities sampled from; where `greedy`, the processed logits whose argmax is taken.
    cut_by: for each row the names of what removed tokens.
    allowed: bool [R, V], what a constraint allows in each row, and whether it has a say there; None without one.
    """

    def __init__(
        self,
        raw: torch.Tensor | None,
        scores: torch.Tensor | None,
        cut_by: list[tuple[str, ...]],
        greedy: bool = False,
        logits: torch.Tensor | None = None,
        best: list[int] | None = None,
        allowed: tuple[torch.Tensor, list[bool]] | None = None,
    ):
        """raw: None where nobody may need it, and it follows from `logits`; scores: None where they are `raw`."""
        self.cut_by, self.greedy, self.allowed = cut_by, greedy, allowed
        self._raw, self._scores = raw, None if scores is raw else scores
        self._logits, self._best = raw if logits is None else logits, best

    def __len__(self) -> int:
        return len(self._logits)

    @property
    def raw(self) -> torch.Tensor:
        if self._raw is None:
            self._raw = self._logits.log_softmax(-1)
        return self._raw

    @property
    def logits(self) -> torch.Tensor:
        """[R, V] the model's logits; `raw` where these are not known."""
        return self._logits

    @property
    def scores(self) -> torch.Tensor:
        return self.raw if self._scores is None else self._scores

    def best(self, row: int) -> int:
        """The most probable token of the distribution sampled from; the lowest id wins a tie."""
        if self._best is None:
            self._best = self.scores.argmax(-1).tolist()
        return self._best[row]

    def forbids(self, row: int, token: int) -> bool:
        """Whether a token is outside the constraint."""
        return self.allowed is not None and not self.allowed[0][row, token]

    def probs(self, row: int) -> torch.Tensor:
        """[V] float64 probabilities sampled from; sums to 1."""
        if self.greedy:
            out = torch.zeros(self.raw.shape[-1], dtype=torch.float64, device=self.raw.device)
            out[self.best(row)] = 1.0
            return out
        return self.scores[row].double().softmax(-1)

    def choose(self, row: int, seed: int, position: int, hypothesis: int = 0) -> int:
        """The token a plain decoder takes: the argmax, or the seeded Gumbel-max draw of (seed, position); of another
        hypothesis of a search another draw."""
        if self.greedy:
            return self.best(row)
        return draw(self.scores[row], seed, "target", position, hypothesis=hypothesis)

    def statistics(self, tokens: list[int], rows: Sequence[int] | None = None) -> dict[str, list]:
        """Token columns of the tokens taken at rows (default: 0, 1, …)."""
        rows = list(range(len(tokens)) if rows is None else rows)
        sampled = not self.greedy and self._scores is not None
        table = self._table(tokens, rows, sampled)
        best = [self.best(n) == t for n, t in zip(rows, tokens, strict=True)] if self.greedy else None
        found = unpack(table, self._logits.shape[-1], [self.cut_by[row] for row in rows], sampled, best)
        return found if self.allowed is None else found | self._constrained(rows)

    def _constrained(self, rows: list[int]) -> dict[str, list]:
        """How many tokens the constraint leaves in rows, and their raw probability; None where it has no say."""
        masks, has_say = self.allowed
        counts = masks[rows].sum(-1).tolist()
        masses = self.raw[rows].double().exp().masked_fill(~masks[rows], 0).sum(-1).tolist()
        return {
            "allowed_count": [n if has_say[row] else None for row, n in zip(rows, counts, strict=True)],
            "allowed_mass": [min(p, 1.0) if has_say[row] else None for row, p in zip(rows, masses, strict=True)],
        }

    def _table(self, tokens: list[int], rows: list[int], sampled: bool) -> list[list[float]]:
        """As of `figures`, on the host."""
        whole = rows == list(range(len(self)))
        known = (self._logits, self._scores)[: 1 + sampled]
        codes = [native.code_for(part) for part in known] if tokens else [None]
        if None in codes:
            known = (self.raw, self._scores if sampled else None)
        parts = [part if whole or part is None else part[rows] for part in known]
        if None in codes:
            return figures(*parts, torch.tensor(tokens, device=parts[0].device)[:, None]).tolist()  # the one copy
        top = min(TOP, parts[0].shape[-1])
        raw, *drawn = (native.figures(code, part, tokens, top) for code, part in zip(codes, parts, strict=True))
        if not drawn:
            return raw
        return [own[:-1] + [one[0], one[-1], one[2], *one[4:-1]] for own, one in zip(raw, drawn[0], strict=True)]

    def compare(self, tree: Any) -> dict[str, list]:
        """Columns of the drafts table for a `DraftTree` of which row i follows node i, None for the root: p of each
        node, and target against draft at its parent.

        At temperature 0, where the distribution sampled from is a point mass, all are of the raw distributions.
        """
        parents, ids = tree.parents[1:], torch.tensor(tree.tokens[1:], device=self.raw.device)
        raw = self.raw[parents]
        target = raw if self.greedy else self.scores[parents]
        columns = {"p": target.gather(-1, ids[:, None])[:, 0].exp()}
        columns["entropy_target_nats"] = torch.special.entr(raw.exp()).sum(-1)
        if tree.raw:
            known = tree.raw if self.greedy else tree.rows
            raw_draft, draft = (torch.stack([rows[n] for n in parents]) for rows in (tree.raw, known))
            columns |= divergences(raw, target, raw_draft, draft)
        return {name: [None, *values.tolist()] for name, values in columns.items()}


def divergences(
    raw: torch.Tensor, scores: torch.Tensor, raw_draft: torch.Tensor, draft: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Target against draft in R rows of log-probabilities [R, V]: entropies of the raw distributions; total variation
    and KL(target ‖ draft) of those sampled from, each [R]."""
    p, q = scores.exp(), draft.exp()
    return {
        "entropy_target_nats": torch.special.entr(raw.exp()).sum(-1),
        "entropy_draft_nats": torch.special.entr(raw_draft.exp()).sum(-1),
        "tv": 0.5 * (p - q).abs().sum(-1),
        "kl_nats": (p * (scores - draft)).masked_fill(p == 0, 0).sum(-1),
    }


def figures(raw: torch.Tensor, scores: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    """The numbers of R rows as one float64 table, without a copy to the host: what `unpack` makes columns of.

    raw, scores: [R, V] log-probabilities of the model's distribution and, where it is another, of the one sampled from;
    ids: [R, 1], the token taken in each row.
    """
    probs = raw.exp()
    chosen = raw.gather(-1, ids)
    weighted = probs * raw.clamp_min(-1e4)
    entropy = -weighted.sum(-1, keepdim=True)
    varentropy = (weighted * raw.clamp_min(-1e4)).sum(-1, keepdim=True) - entropy**2
    rank = (raw > chosen).sum(-1, keepdim=True) + 1
    top = raw.topk(min(TOP, raw.shape[-1]))
    parts = [entropy, varentropy, chosen, rank.to(raw.dtype), top.values, top.indices.to(torch.float64)]
    if scores is not None:
        entropy_sampled = torch.special.entr(scores.exp()).sum(-1, keepdim=True)
        keep = (scores > -torch.inf).sum(-1, keepdim=True)
        best = scores.topk(min(TOP, scores.shape[-1]))
        taken = scores.gather(-1, ids)
        parts += [entropy_sampled, keep.to(raw.dtype), taken, best.values, best.indices.to(torch.float64)]
    return torch.cat([part.double() for part in parts], -1)


def unpack(
    table: list[list[float]], vocabulary: int, cut_by, sampled: bool, best: list[bool] | None = None
) -> dict[str, list]:
    """Token columns from the rows of `figures`; sampled: the table holds a distribution sampled from beside the raw
    one; best: at temperature 0, whether each token is the argmax."""
    top = min(TOP, vocabulary)
    columns: dict[str, list] = {
        "entropy_raw_nats": [r[0] for r in table],
        "varentropy_nats2": [max(r[1], 0.0) for r in table],
        "surprisal_nats": [-r[2] for r in table],
        "p_raw": [exp(r[2]) for r in table],
        "rank": [int(r[3]) for r in table],
    }
    candidates = [_candidates(r[4 : 4 + top], r[4 + top : 4 + 2 * top]) for r in table]
    columns["margin"] = [p[0] - (p[1] if len(p) > 1 else 0.0) for _, p in candidates]
    columns["topk_raw"] = candidates
    columns["cut_by"] = ["+".join(names) or None for names in cut_by]
    if sampled:
        at = 4 + 2 * top
        columns["entropy_sampled_nats"] = [r[at] for r in table]
        columns["keep_size"] = [int(r[at + 1]) for r in table]
        columns["p_sampled"] = [exp(r[at + 2]) for r in table]
        columns["topk_sampled"] = [_candidates(r[at + 3 : at + 3 + top], r[at + 3 + top :]) for r in table]
    elif best is not None:
        columns["entropy_sampled_nats"] = [0.0] * len(table)
        columns["p_sampled"] = [float(is_best) for is_best in best]
        columns["keep_size"] = [1] * len(table)
    else:
        columns["entropy_sampled_nats"] = columns["entropy_raw_nats"]
        columns["p_sampled"] = columns["p_raw"]
        columns["keep_size"] = [vocabulary] * len(table)
    return columns


def _candidates(values: list[float], ids: list[float]) -> list[list]:
    """[ids, probabilities], most likely first; cut tokens left out."""
    kept = [(int(i), exp(v)) for v, i in zip(values, ids, strict=True) if v > -1e30]
    return [[i for i, _ in kept], [p for _, p in kept]]


def draw(
    scores: torch.Tensor, seed: int, purpose: str, position: int, count: int = 1, branch: int = 0, hypothesis: int = 0
) -> int | list[int]:
    """Gumbel-max draw from log-probabilities `scores` [V] on their support; `count` > 1 draws without replacement.

    Returns the token, or a list of at most `count` tokens in draw order.
    """
    if count == 1 and (code := native.code_for(scores)):
        return native.draw(code, scores, noise.position_key(seed, purpose, position, branch, hypothesis))
    support = (scores > -torch.inf).nonzero()[:, 0]
    perturbed = scores[support].double() + noise.gumbel(seed, purpose, position, support, branch, hypothesis)
    if count == 1:
        return int(support[perturbed.argmax()])
    return support[perturbed.topk(min(count, len(support))).indices].tolist()
