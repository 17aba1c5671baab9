"""Hypotheses: several ways in which the text may go on, read side by side, until one of them wins.

`begin` makes the text the first hypothesis; `read` runs one forward over all that are asked, and gives the
distributions behind them; `grow` goes on with tokens, several of one split it; `win` makes a hypothesis the text, and
`settle` what all agree on. Whoever decides marks the others' `fate`; what is not `live` or `finished` is dropped at the
end of the round. Each hypothesis is a state with caches of its own, which come to their boundaries by themselves: it
is what a plain run forced to its text would be.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

import torch

from workbench.engine.bundle import together
from workbench.engine.distribution import Distribution
from workbench.rounds.round import Round, extend, top_rows
from workbench.rounds.state import Hypothesis, State
from workbench_kernels.noise import child_of

T = TypeVar("T")
Pick = tuple[Hypothesis, int, int]


def begin(state: State, role: str) -> Hypothesis:
    """The text so far as a hypothesis, with a fork of its caches."""
    fork = state.fork()
    fork.hypotheses = {}
    for runner in fork.runners.values():
        runner.store.share()
    return Hypothesis(0, None, fork, role)


def each(r: Round, hypotheses: Sequence[Hypothesis], act: Callable[[Round], T], phase: str | None = None) -> list[T]:
    """What `act` returns for a round on the state of each, their forwards bundled. phase: as these are recorded."""
    rounds = [copy(r) for _ in hypotheses]
    for one, hypothesis in zip(rounds, hypotheses, strict=True):
        one.state, one.observer, one.phase = hypothesis.state, None, phase
    found = together([partial(act, one) for one in rounds], r.wait)
    if len(rounds) == 1:
        r.waited = rounds[0].waited
    return found


def read(r: Round, hypotheses: Sequence[Hypothesis], phase: str | None = None, logp: bool = False) -> Distribution:
    """Read what the hypotheses have not read, and give the distributions of what may follow, a row for each.

    phase: "lookahead" where all are dropped in this round. logp: processors get log-probabilities, not logits.
    """
    logits = torch.cat(each(r, hypotheses, lambda one: one.advance("target").logits, phase))
    for place, one in enumerate(hypotheses):  # widths are noted of one cache, that of the best
        r.drain(one, dropped=phase == "lookahead", bits=place == 0 and phase != "lookahead")
    logits = logits.float().log_softmax(-1) if logp else logits
    return r.dist(logits, lambda row: hypotheses[row].state.tokens)


def grow(r: Round, dist: Distribution, picks: Sequence[Pick]) -> list[Hypothesis]:
    """One token more: a hypothesis, the row of `dist` behind it, and the token that it goes on with; in this order.

    Several of one hypothesis are its children, which share its caches. A child whose text ends is `finished`.
    """
    ids = torch.tensor([[token] for _, _, token in picks], device=dist.raw.device)
    rows = [row for _, row, _ in picks]
    logps = dist.raw[rows].gather(-1, ids)[:, 0].tolist()
    known = {"token_id": ids[:, 0].tolist()}
    if r.logging:
        known |= dist.statistics(known["token_id"], rows)
    if r.settings.level == "full":
        known |= {"row": [*zip(*top_rows(dist.raw[rows]).values(), strict=True)]}
    counts: dict[int, int] = {}
    for parent, *_ in picks:
        counts[parent.id] = counts.get(parent.id, 0) + 1
    children, ranks = [], dict.fromkeys(counts, 0)
    for number, (parent, *_) in enumerate(picks):
        rank = ranks[parent.id]
        ranks[parent.id] += 1
        if counts[parent.id] > 1 and rank == 0:
            for runner in parent.state.runners.values():
                runner.store.share()
        state = parent.state if rank == counts[parent.id] - 1 else parent.state.fork()
        children.append(
            Hypothesis(
                child_of(parent.id, rank), parent.id, state, parent.role, parent.logp + logps[number], parent.score,
                known=({name: column[number] for name, column in known.items()}, parent.known),
            )  # fmt: skip
        )
    for child, (_, _, token) in zip(children, picks, strict=True):  # once all are forked
        state = child.state
        state.tokens.append(token)
        child.known[0]["text"] = state.text.push(token)
        one = copy(r)
        one.state = state
        state.ended = one.ending()
        child.fate = "finished" if state.ended else "live"
        child.reason = state.ended
    return children


def settle(r: Round, hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """Make text of what all hypotheses begin with, but for the last token of each; what is known of the last token that
    became text."""
    start = len(r.state.tokens)
    columns = zip(*(one.state.tokens[start:-1] for one in hypotheses), strict=False)
    count = sum(1 for _ in takewhile(lambda tokens: len({*tokens}) == 1, columns))
    return _append(r, hypotheses[0], count) if count else {}


def win(r: Round, hypothesis: Hypothesis) -> None:
    """Make a hypothesis the text of the run, and its caches the run's; the others are dropped."""
    for one in r.state.hypotheses.values():
        one.fate = "won" if one is hypothesis else "pruned"
    state = hypothesis.state
    _append(r, hypothesis, len(state.tokens) - len(r.state.tokens))
    r.state.runners, r.state.memory = state.runners, state.memory


def _append(r: Round, hypothesis: Hypothesis, count: int) -> dict[str, Any]:
    """Put the next `count` tokens of a hypothesis behind the text, with what was known of each when it was chosen; what
    is known of the last."""
    known, link, start = [], hypothesis.known, len(r.state.tokens)
    for _ in range(len(hypothesis.state.tokens) - start):
        facts, link = link
        known.append(facts)
    known = known[::-1][:count]
    count = r.take([facts["token_id"] for facts in known])
    columns: dict[str, list] = {"source": ["target"] * count, "model": ["target"] * count,
                                "hypothesis": [hypothesis.id] * count}  # fmt: skip
    for facts in known[:count]:
        extend(columns, {name: [value] for name, value in facts.items() if name not in ("text", "row", "sum")})
        if "row" in facts:
            names = ("ids", "logp", "tail_mass")
            row = {name: [value] for name, value in zip(names, facts["row"], strict=True)}
            extend(r.step.rows.setdefault("target", {}), row | {"position": [start]})
            start += 1
    r.log_tokens(columns)
    return known[count - 1]

