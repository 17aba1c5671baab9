"""The distributions kept in a trace at level `full`, and how far two runs' distributions are apart."""

from math import exp, log
from statistics import mean
from typing import TYPE_CHECKING

from workbench.errors import BadInput

if TYPE_CHECKING:
    from workbench.trace.trace import Trace

Distribution = dict[int, float]  # the probabilities of the most likely tokens, by id
LEAST = 1e-300  # stands for a probability too small for a float


def distributions(trace: "Trace") -> dict[int, Distribution]:
    """The target's distribution before processors at every new token, by position. BadInput where the level was not
    `full`."""
    if (level := trace.run.get("level")) != "full":
        raise BadInput(f"distributions: the trace was recorded at level {level!r}; record at level 'full'")
    found = {}
    for event in trace.log:
        rows = event.get("target") if event["type"] == "rows" else None
        for position, ids, logp in zip(*(rows[n] for n in ("position", "ids", "logp")), strict=True) if rows else ():
            known = zip(ids, logp, strict=True)
            found[position] = {token: exp(min(value, 0.0)) for token, value in known if value is not None}
    return found


def divergence(trace: "Trace", reference: "Trace", floor: float = 1e-6) -> float:
    """Mean Kullback-Leibler divergence, in nats per token, of a run's distributions from those of a reference on the
    same text.

    A distribution is known by its most likely tokens; those missing in either run count as one lump of at least
    `floor`, so the figure lies a little below the true one (data processing).

    Raises BadInput where a run was not recorded at level `full` or the texts differ (decode with `force=`).
    """
    if trace.token_ids != reference.token_ids:
        raise BadInput("divergence: the runs wrote different texts; decode with force=reference.token_ids")
    p, q = distributions(reference), distributions(trace)
    places = sorted(p.keys() & q.keys())
    if not places:
        raise BadInput("divergence: no distribution was recorded; decode at least one token")
    return mean(_apart(p[place], q[place], floor) for place in places)


def _apart(p: Distribution, q: Distribution, floor: float) -> float:
    pairs = [(p[i], max(q[i], LEAST)) for i in p.keys() & q.keys() if p[i] > 0]
    rest = [max(1 - sum(column), floor) for column in zip(*pairs, strict=True)] if pairs else [1.0, 1.0]
    return sum(a * log(a / b) for a, b in [*pairs, rest])
