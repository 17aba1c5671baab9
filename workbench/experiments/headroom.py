"""Counterfactual replay: what other drafts would have accepted on a run's own text, and how far the best could go.

A drafter reads committed text until its first miss, so what it would have proposed along the text decides how long any
chain, and which branch of any tree, would have been accepted. That holds for drafters whose distribution after a text
depends on the text alone (`Drafter.by_text`); at level `full` a trace keeps it for every position. Drafts end where the
contexts and the next maintenance of the cache end them, as in a run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd

from workbench.declare import from_dict
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.rounds import Round
from workbench.speculation.tree import MAX_NODES
from workbench.speculation.tree_builder import BEST
from workbench.trace import Trace
from workbench.trace.summary import layer_shares

LONGEST = 16  # of the oracle's chains
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
THRESHOLDS = (0.2, 0.4, 0.6, 0.8)
TREES = ((2, 1, 1), (2, 2, 1, 1), (3, 2, 1, 1), (4, 2, 2))
COLUMNS = ("shape", "setting", "rounds", "drafted", "accepted", "tokens_per_target_forward", "modelled_speedup")
Draft = tuple[int, int, int]  # levels, nodes, accepted


@dataclass(frozen=True)
class Costs:
    """Milliseconds: draft, a level of the drafter's; start + row · n, what scores n rows of a draft."""

    draft: float
    start: float
    row: float
    plain: float | None = None  # a step of plain decoding; by default a forward over one row

    def step(self) -> float:
        return self.start + self.row if self.plain is None else self.plain

    def round(self, calls: int, rows: int) -> float:
        """A round of so many drafted levels, its nodes scored beside the pending token."""
        return calls * self.draft + self.start + self.row * (rows + 1)

    @classmethod
    def of(cls, trace: Trace) -> "Costs":
        """From the run's own forwards. draft: median over rounds of the time drafting took per level. The target's
        price of a row is by a line through the medians, or 0 where all its forwards had the same number of rows. Where
        they ran a part of the layers alone (the drafter ran the others), plain is in proportion to the whole model."""
        passes, depth = trace.forwards, trace.rounds.set_index("round")["depth"]
        if passes["sequences"].notna().any():
            raise BadInput("the run shared its forwards with other prompts, so that they have no price of their own: "
                           "decode this prompt alone")  # fmt: skip
        drafting = passes[passes["phase"] == "draft"].groupby("round")["wall_ms"].sum() / depth[depth > 0]
        draft = drafting.dropna().median()
        target = passes[passes["phase"] == "target"]
        times = target.groupby("rows")["wall_ms"].median()
        start, row = _line(times.index.to_numpy(float), times.to_numpy())
        share = layer_shares(trace.run, target).median()
        return cls(float(0 if np.isnan(draft) else draft), float(start), float(row), float((start + row) / share))

    @classmethod
    def measure(cls, lm: LanguageModel, draft: LanguageModel, context: int = 256, repeats: int = 15) -> "Costs":
        """On this machine: medians of forwards at a context; the target's over 1 to 32 rows, interleaved, and a line
        through them."""
        counts = (1, 2, 4, 8, 16, 32)
        runs = [(draft, draft.new_store(), 1), *((lm, lm.new_store(), count) for count in counts)]
        times: list[list[float]] = [[] for _ in runs]
        for model, store, _ in runs:
            model.forward([0] * context, range(context), store, logits_at="last")
            store.commit(range(context))
        for _ in range(repeats):
            for (model, store, rows), spent in zip(runs, times, strict=True):
                start = Round._clock(model)
                model.forward([0] * rows, range(context, context + rows), store)
                spent.append((Round._clock(model) - start) * 1000)
                store.discard()
        drafting, *scoring = map(median, times)
        return cls(drafting, *_line(np.array(counts, float), np.array(scoring)))


def _line(rows: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Where a line through times over rows starts, and its rise; where noise makes one negative, the other alone."""
    rise, start = np.polyfit(rows, times, 1) if len(rows) > 1 else (0.0, times[0])
    if rise <= 0:
        return float(np.median(times)), 0.0
    return (float(start), float(rise)) if start > 0 else (0.0, float(np.median(times / rows)))


@dataclass(frozen=True)
class _Text:
    """The committed text as the drafter met it: per new token its rank among the drafter's proposals at that place
    (None: not among them), the largest probability of the drafter's distribution there, and how deep a round that
    begins there may draft. Its methods draft from a place on."""

    ranks: list[int | None]
    sure: list[float]
    depth: list[int]

    def run(self, start: int, length: int) -> int:
        """How many of the drafter's first choices in a row are the text's, at most `length`."""
        return sum(1 for _ in takewhile(lambda rank: rank == 0, self.ranks[start : start + length]))

    def chain(self, at: int, length: int) -> Draft:
        length = min(length, self.depth[at])
        return length, length, self.run(at, length)

    def confident(self, at: int, threshold: float, most: int = 12) -> Draft:
        """Up to the first token whose distribution had its largest probability below the threshold, that one too."""
        sure = self.sure[at : at + most]
        return self.chain(at, next((i + 1 for i, value in enumerate(sure) if value < threshold), most))

    def tree(self, at: int, branching: tuple[int, ...]) -> Draft:
        """Constant branching: the text's token is in the tree as long as it ranks among the children asked for."""
        levels = branching[: self.depth[at]]
        pairs = zip(levels, self.ranks[at:], strict=False)
        inside = takewhile(lambda pair: pair[1] is not None and pair[1] < pair[0], pairs)
        return len(levels), int(np.cumprod(levels, dtype=int).sum()), sum(1 for _ in inside)

    def heuristic(self, length: int = 4, most: int = 20) -> Callable[[int], Draft]:
        """Two more after a round that accepted everything, else one less: the rule of transformers."""

        def draft(at: int) -> Draft:
            nonlocal length
            found = asked, _, accepted = self.chain(at, length)
            if asked:
                length = min(most, length + 2) if accepted == asked else max(1, length - 1)
            return found

        return draft

    def oracle(self, costs: Costs) -> Callable[[int], Draft]:
        """The chain lengths that take the least time in all: dynamic programming from the end."""
        size = len(self.ranks)
        spent, choice = [0.0] * (size + LONGEST + 2), [0] * size
        for at in reversed(range(size)):
            options = range(self.run(at, min(LONGEST, self.depth[at])) + 1)
            choice[at] = min(options, key=lambda m: costs.round(m, m) + spent[at + m + 1])
            spent[at] = costs.round(choice[at], choice[at]) + spent[at + choice[at] + 1]
        return lambda at: self.chain(at, choice[at])

    def replay(self, draft: Callable[[int], Draft]) -> list[Draft]:
        """The rounds that a way of drafting gives over the whole text; each emits one token more than it accepts."""
        rounds, at = [], 0
        while at < len(self.ranks):
            levels, nodes, accepted = draft(at)
            rounds.append((levels, nodes, min(accepted, len(self.ranks) - at)))
            at += accepted + 1
        return rounds


def headroom(
    trace: Trace,
    costs: Costs | None = None,
    lengths: Iterable[int] = LENGTHS,
    thresholds: Iterable[float] = THRESHOLDS,
    trees: Iterable[Sequence[int]] = TREES,
) -> pd.DataFrame:
    """What a recorded run would have been with other draft shapes: a row per shape, the oracle last.

    trace: a greedy or seeded run of a drafter whose distribution after a text depends on the text alone (`DraftModel`
    without a cache stack of its own, `Kangaroo` at one exit), recorded at level `full`, under any cache stack of the
    target; text and proposals are taken as they are, nothing runs. costs: of forwards, by default those of the run
    itself.

    Columns: `shape`, `setting`, `rounds`, `drafted`, `accepted`, `tokens_per_target_forward`, `modelled_speedup` over
    plain decoding by `costs` (drafting and scoring only) and `oracle_share`, the part of the oracle's gain in time over
    plain decoding that the shape gets. The oracle knows how far each chain would be accepted and chooses the lengths
    that take the least time over the whole run; its length per round is in `.attrs["oracle_lengths"]`, and
    `.attrs["note"]` says in a sentence what is left to gain.

    Rounds and accepted tokens are those of a run with that shape; whether the last token of all was drafted, the trace
    may not tell, then it counts as the target's. For a threshold the number of drafted tokens is an estimate beyond the
    first miss: there the drafter would have read another text, whose confidences are taken from this one.

    Raises BadInput, with the reason, where replay would not be exact or the trace does not hold what it needs.
    """
    trees = list(map(tuple, trees))
    if any(width > BEST for branching in trees for width in branching):
        raise BadInput(f"headroom: trees={trees}: a trace keeps {BEST} proposals at a place; expected no wider trees")
    text = _text(trace)
    costs = costs or Costs.of(trace)
    shapes = [
        *(("fixed", str(k), partial(text.chain, length=k)) for k in lengths),
        ("heuristic", "+2/−1 from 4", text.heuristic()),
        *(("confidence", f"{t:g}", partial(text.confident, threshold=t)) for t in thresholds),
        *(("tree", "×".join(map(str, b)), partial(text.tree, branching=b)) for b in trees),
        ("oracle", "best lengths", text.oracle(costs)),
    ]
    rows, times, count, plain = [], [], len(text.ranks), costs.step() * len(text.ranks)
    for shape, setting, draft in shapes:
        levels, drafted, accepted = zip(*(rounds := text.replay(draft)), strict=True)
        times.append(sum(map(costs.round, levels, drafted)))
        counts = (len(rounds), sum(drafted), sum(accepted), count / len(rounds))
        rows.append((shape, setting, *counts, plain / times[-1]))
    table, best, lengths = pd.DataFrame(rows, columns=COLUMNS), plain - times[-1], list(levels)  # the oracle's
    table["oracle_share"] = (plain - np.array(times)) / best if best > 0 else float("nan")
    table.attrs |= {"oracle_lengths": lengths, "note": _note(table, lengths)}
    return table


def _note(table: pd.DataFrame, lengths: list[int]) -> str:
    *rest, oracle = table["modelled_speedup"]
    best = table.iloc[int(np.argmax(rest))]
    text = (
        f"An oracle would draft {mean(lengths):.1f} tokens a round (median {median(lengths):g}) and run at "
        f"{oracle:.2f} times plain decoding; the best shape here, {best['shape']} {best['setting']}, at "
        f"{best['modelled_speedup']:.2f}"
    )
    if oracle <= 1:
        return text + ". With these costs no choice of lengths pays: look at the drafter, not at its shape."
    left = oracle / best["modelled_speedup"] - 1
    if left < 0.1:
        return text + f". What is left is {left:.0%}: not worth chasing with another policy of lengths."
    return text + f". A better policy of lengths could gain up to {left:.0%} more."


def _text(trace: Trace) -> _Text:
    """Ranks and confidences along the committed text, from the kept rows of the draft."""
    for reason in _reasons(trace):
        raise BadInput(f"headroom: {reason}")
    first, tokens = len(trace.run.get("prompt_ids") or ()), trace.token_ids
    drafts = trace.drafts
    stood = drafts[drafts["fate"].isin(["accepted", "after_end"])]
    accepted = {number: set(nodes) for number, nodes in stood.groupby("round")["node"]}
    known: dict[int, tuple[list[int], float]] = {}
    for event in trace.log:
        rows = event.get("draft") if event["type"] == "rows" else None
        if not rows:
            continue
        for position, node, best, logp in zip(*(rows[n] for n in ("position", "node", "best", "logp")), strict=True):
            if node <= 0 or node in accepted.get(event["round"], ()):
                known[position] = (best, float(np.exp(logp[0])))
    if not known:
        raise BadInput(
            "headroom: the trace holds no distributions of a drafter; record a run with a drafter that has them"
        )
    ranks, sure, depth = [], [], _depths(trace, first, len(tokens))
    for index, token in enumerate(tokens):
        if first + index not in known and depth[index] and index < len(tokens) - 1:
            raise BadInput(
                f"headroom: the trace does not hold the drafter's distribution at token {index}; record the run anew"
            )
        best, confidence = known.get(first + index, ([], 0.0))
        ranks.append(best.index(token) if token in best else None)
        sure.append(confidence)
    return _Text(ranks, sure, depth)


def _reasons(trace: Trace) -> Iterator[str]:
    """Why other drafts would not have met the same text, or the drafter not had the same distributions."""
    run = trace.run
    if run.get("level") != "full":
        yield f"the trace was recorded at level {run.get('level')!r}; record at level 'full'"
    described = run.get("decoder") or {}
    if described.get("name") != "speculative":
        yield (
            f"the trace holds no distributions of a drafter to replay: decoded by {described.get('name')!r}; expected a"
            " run of 'speculative'"
        )
    decoder = _member(described)
    drafter, shape, verifier = decoder.drafter, decoder.shape, decoder.verifier
    sampled = (run.get("sampling") or {}).get("temperature")
    if (sampled and verifier.declared_name != "seeded") or run.get("guarantee") not in ("exact", "seeded"):
        yield (
            "replays greedy and seeded runs, where the text does not depend on the drafts; this one was verified by"
            f" {verifier.declared_name!r}; record with verifier='seeded'"
        )
    if not drafter.by_text or "exits" in shape.needs:
        why = "where a round begins" if not drafter.by_text else f"the exits that shape {shape.declared_name!r} chose"
        yield (
            f"what drafter {drafter.declared_name!r} proposes after a text depends on {why}, so this run does not tell"
            " what other drafts would have been; decode with them and use wb.compare"
        )
    if (run.get("parent") or {}).get("index"):
        yield (
            "the trace is a branch, whose first rounds may have been decoded in another way; record the run from its"
            " beginning"
        )


def _member(described: dict) -> Any:
    """The decoder or cache that a run event describes."""
    try:
        return from_dict(described)
    except (AttributeError, KeyError, TypeError):
        raise BadInput("headroom: the trace does not say how it was decoded; record the run anew") from None


def _depths(trace: Trace, first: int, count: int) -> list[int]:
    """How many levels a round may draft where it begins at each new token: as `Speculative.round` caps them, by the
    contexts of the models and the next maintenance of the target's cache; `first`: tokens of the prompt."""
    run = trace.run
    contexts = {model.get("role"): model.get("context") for model in run.get("models") or ()}
    target, draft = contexts.get("target"), contexts.get("draft", 2**30)
    if not isinstance(target, int) or not isinstance(draft, int):
        raise BadInput("headroom: the trace does not tell the contexts of its models; record the run anew")
    stack = _member(run["cache"]) if run.get("cache") else None
    depths = []
    for length in range(first, first + count):
        caps = [MAX_NODES, target - length - 1, draft - length]
        at = stack.next(length - 1, first) if stack else None
        if at is not None:
            caps.append(at - length)
        depths.append(max(0, min(caps)))
    return depths
