"""Counterfactual replay: what other drafts would have accepted on a run's own text, and how far the best could go.

A drafter reads committed text until its first miss, so what it would have proposed along the text decides how long any
chain, and which branch of any tree, would have been accepted. At level `full` a trace keeps that for every position.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import pandas as pd

from workbench.decoders.base import RoundLog
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.trace import Trace

__all__ = ["Costs", "headroom"]

LONGEST = 16  # of the oracle's chains
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
THRESHOLDS = (0.2, 0.4, 0.6, 0.8)
TREES = ((2, 1, 1), (2, 2, 1, 1), (3, 2, 1, 1), (4, 2, 2))


@dataclass(frozen=True)
class Costs:
    """Milliseconds: draft, one forward of the drafter; start + row · n, a forward of the target over n rows."""

    draft: float
    start: float
    row: float

    def round(self, calls: int, rows: int) -> float:
        """A round of so many draft forwards, its nodes scored beside the pending token."""
        return calls * self.draft + self.start + self.row * (rows + 1)

    @classmethod
    def of(cls, trace: Trace) -> "Costs":
        """From the run's own forwards: medians; the target's price of a row by a line through what was recorded, or 0
        where all its forwards had the same number of rows."""
        passes = trace.forwards
        draft = passes["wall_ms"][(passes["phase"] == "draft") & (passes["rows"] <= 2)]
        target = passes[passes["phase"] == "target"]
        times = target.groupby("rows")["wall_ms"].median()
        row, start = np.polyfit(times.index.astype(float), times, 1) if len(times) > 1 else (0.0, times.iloc[0])
        row = max(row, 0.0)
        return cls(float(draft.median()) if len(draft) else 0.0, float(start if row else times.median()), float(row))

    @classmethod
    def measure(cls, lm: LanguageModel, draft: LanguageModel, context: int = 256, repeats: int = 15) -> "Costs":
        """On this machine: medians of forwards at a context; the target's over 1 to 32 rows, interleaved, and a line
        through them."""
        counts = (1, 2, 4, 8, 16, 32)
        stores = {id(model): model.new_store() for model in (lm, draft)}
        for model in (lm, draft):
            model.forward([0] * context, range(context), stores[id(model)], logits_at="last")
            stores[id(model)].commit(range(context))
        times: dict[int, list[float]] = {count: [] for count in (0, *counts)}
        for _ in range(repeats):
            for count in times:
                model = lm if count else draft
                rows = max(count, 1)
                start = RoundLog._clock(model)
                model.forward([0] * rows, range(context, context + rows), stores[id(model)])
                times[count].append((RoundLog._clock(model) - start) * 1000)
                stores[id(model)].discard()
        row, start = np.polyfit(counts, [median(times[count]) for count in counts], 1)
        return cls(median(times[0]), float(start), float(row))


@dataclass(frozen=True)
class _Text:
    """The committed text as the drafter met it: per new token its rank among the drafter's proposals at that place
    (None: not among them, or unknown) and the largest probability of the drafter's law there."""

    ranks: list[int | None]
    sure: list[float]

    def run(self, start: int, length: int) -> int:
        """How many of the drafter's first choices in a row are the text's, at most `length`."""
        end = start
        while end < min(start + length, len(self.ranks)) and self.ranks[end] == 0:
            end += 1
        return end - start


Draft = tuple[int, int, int]  # forwards of the drafter, nodes, accepted


def headroom(
    trace: Trace,
    costs: Costs | None = None,
    lengths: Iterable[int] = LENGTHS,
    thresholds: Iterable[float] = THRESHOLDS,
    trees: Iterable[Sequence[int]] = TREES,
) -> pd.DataFrame:
    """What a recorded run would have been with other draft shapes: a row per shape, the oracle last.

    trace: a greedy or keyed run of a drafter with laws, recorded at level `full`; text and proposals are taken as they
    are, nothing runs. costs: of forwards, by default those of the run itself.

    Columns: `shape`, `setting`, `rounds`, `drafted`, `accepted`, `tokens_per_target_forward`, `modelled_speedup` over
    plain decoding by `costs` (drafting and scoring only) and `oracle_share`, the part of the oracle's gain in time over
    plain decoding that the shape gets. The oracle knows how far each chain would be accepted and chooses the lengths
    that take the least time over the whole run; its length per round is in `.attrs["oracle_lengths"]`, and
    `.attrs["note"]` says in a sentence what is left to gain.

    Exact for lengths and trees (the same rounds as a run with that shape). For a threshold the stop beyond the first
    miss is an estimate: there the drafter would have read another text, whose confidences are taken from this one.

    Raises BadInput where the trace does not hold what this needs.
    """
    text = _text(trace)
    if costs is None:
        costs = Costs.of(trace)
    plain = costs.round(0, 0) * len(text.ranks)
    rows = []
    shapes = [("fixed", str(k), _fixed(k)) for k in lengths]
    shapes += [("heuristic", "+2/−1 from 4", _heuristic())]
    shapes += [("confidence", f"{t:g}", _confidence(t)) for t in thresholds]
    shapes += [("tree", "×".join(map(str, b)), _tree(tuple(b))) for b in trees]
    lengths_of_oracle = _oracle(text, costs)
    shapes.append(("oracle", "best lengths", _scripted(lengths_of_oracle)))
    for shape, setting, draft in shapes:
        rounds = _replay(text, draft)
        spent = sum(costs.round(calls, nodes) for calls, nodes, _ in rounds)
        rows.append(
            {
                "shape": shape,
                "setting": setting,
                "rounds": len(rounds),
                "drafted": sum(nodes for _, nodes, _ in rounds),
                "accepted": sum(accepted for _, _, accepted in rounds),
                "tokens_per_target_forward": len(text.ranks) / len(rounds),
                "modelled_speedup": plain / spent,
                "ms": spent,
            }
        )
    table = pd.DataFrame(rows)
    best = plain - table["ms"].iloc[-1]
    table["oracle_share"] = (plain - table.pop("ms")) / best if best > 0 else float("nan")
    table.attrs["oracle_lengths"] = lengths_of_oracle
    table.attrs["note"] = _note(table, lengths_of_oracle)
    return table


def _note(table: pd.DataFrame, lengths: list[int]) -> str:
    oracle, rest = table.iloc[-1], table.iloc[:-1]
    best = rest.loc[rest["modelled_speedup"].idxmax()]
    name = f"{best['shape']} {best['setting']}"
    text = (
        f"An oracle would draft {mean(lengths):.1f} tokens a round (median {median(lengths):g}) and run at "
        f"{oracle['modelled_speedup']:.2f} times plain decoding; the best shape here, {name}, at "
        f"{best['modelled_speedup']:.2f}"
    )
    if oracle["modelled_speedup"] <= 1:
        return text + ". With these costs no choice of lengths pays: look at the drafter, not at its shape."
    left = oracle["modelled_speedup"] / best["modelled_speedup"] - 1
    if left < 0.1:
        return text + f". What is left is {left:.0%}: not worth chasing with another policy of lengths."
    return text + f". A better policy of lengths could gain up to {left:.0%} more."


def _text(trace: Trace) -> _Text:
    """Ranks and confidences along the committed text, from the kept rows of the draft."""
    first, tokens = len(trace.run.get("prompt_ids") or ()), trace.token_ids
    if trace.run.get("level") != "full":
        raise BadInput(f"headroom: the trace was recorded at level {trace.run.get('level')!r}; record at level 'full'")
    verifier = ((trace.run.get("decoder") or {}).get("settings") or {}).get("verifier") or {}
    verifier = verifier if isinstance(verifier, dict) else {"name": verifier}
    greedy = not (trace.run.get("sampling") or {}).get("temperature")
    if not greedy and verifier.get("name") != "keyed":
        raise BadInput(
            f"headroom: replays greedy and keyed runs, where the text does not depend on the drafts; this one was "
            f"verified by {verifier.get('name')!r}; record with verifier='keyed'"
        )
    accepted = _accepted(trace)
    known: dict[int, tuple[list[int], float]] = {}
    for event in trace.log:
        rows = event.get("draft") if event["type"] == "rows" else None
        if not rows:
            continue
        for position, node, best, logp in zip(*(rows[n] for n in ("position", "node", "best", "logp")), strict=True):
            if node <= 0 or node in accepted.get(event["round"], ()):
                known[position] = (best, float(np.exp(logp[0])))
    if not known:
        raise BadInput("headroom: the trace holds no laws of a drafter; record a run with a drafter that has them")
    ranks, sure = [], []
    for position, token in enumerate(tokens, start=first):
        best, confidence = known.get(position, ([], 0.0))
        ranks.append(best.index(token) if token in best else None)
        sure.append(confidence)
    return _Text(ranks, sure)


def _accepted(trace: Trace) -> dict[int, set[int]]:
    drafts = trace.drafts
    stood = drafts[drafts["fate"].isin(["accepted", "after_end"])]
    return {number: set(nodes) for number, nodes in stood.groupby("round")["node"]}


def _replay(text: _Text, draft: Callable[[_Text, int], Draft]) -> list[Draft]:
    """The rounds that a way of drafting gives over the whole text; each emits one token more than it accepts."""
    rounds, at = [], 0
    while at < len(text.ranks):
        calls, nodes, accepted = draft(text, at)
        rounds.append((calls, nodes, min(accepted, len(text.ranks) - at)))
        at += accepted + 1
    return rounds


def _fixed(length: int) -> Callable[[_Text, int], Draft]:
    return lambda text, at: (length, length, text.run(at, length))


def _scripted(lengths: list[int]) -> Callable[[_Text, int], Draft]:
    left = iter(lengths)
    return lambda text, at: (length := next(left), length, text.run(at, length))


def _heuristic(length: int = 4) -> Callable[[_Text, int], Draft]:
    """Two more after a round that accepted everything, else one less: the rule of transformers."""

    def draft(text: _Text, at: int) -> Draft:
        nonlocal length
        asked, accepted = length, text.run(at, length)
        length = length + 2 if accepted == asked else max(1, length - 1)
        return asked, asked, accepted

    return draft


def _confidence(threshold: float, most: int = 12) -> Callable[[_Text, int], Draft]:
    """Up to the first token whose law had its largest probability below the threshold, that token included."""

    def draft(text: _Text, at: int) -> Draft:
        sure = text.sure[at : at + most]
        length = next((i + 1 for i, value in enumerate(sure) if value < threshold), min(most, len(sure)))
        return length, length, text.run(at, length)

    return draft


def _tree(branching: tuple[int, ...]) -> Callable[[_Text, int], Draft]:
    """Constant branching: the text's token is in the tree as long as it ranks among the children asked for."""
    nodes = sum(int(np.prod(branching[: depth + 1])) for depth in range(len(branching)))

    def draft(text: _Text, at: int) -> Draft:
        accepted = 0
        for width, rank in zip(branching, text.ranks[at:], strict=False):
            if rank is None or rank >= width:
                break
            accepted += 1
        return len(branching), nodes, accepted

    return draft


def _oracle(text: _Text, costs: Costs) -> list[int]:
    """Chain lengths, round by round, that take the least time in all: dynamic programming from the end."""
    size = len(text.ranks)
    spent, choice = [0.0] * (size + LONGEST + 2), [0] * size
    for at in reversed(range(size)):
        options = range(text.run(at, LONGEST) + 1)
        choice[at] = min(options, key=lambda m: costs.round(m, m) + spent[at + m + 1])
        spent[at] = costs.round(choice[at], choice[at]) + spent[at + choice[at] + 1]
    lengths, at = [], 0
    while at < size:
        lengths.append(choice[at])
        at += choice[at] + 1
    return lengths
