"""What rounding may do, on any CPU: how far sums may differ, and which differences of texts that excuses.

Nothing else in the tests says how close two numbers must be because they happened to be that close on one machine.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch

from workbench.cache.codec import Affine
from workbench.cache.plan import CacheMethod
from workbench.cache.readers.lserve import LServe
from workbench.engine.distribution import Distribution
from workbench_kernels.distribution import native
from workbench_kernels.noise import reference as noise

__all__ = ["MARGIN", "SHARE", "Texts", "close", "margins", "tolerance"]

SAFETY = 8  # eight standard errors of a sum: no library's order of summing is off by more
MARGIN, SHARE = 1e-4, 0.02  # of a decision, in nats or relative; of texts that may be forgiven


def tolerance(terms: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """How far two sums of the same products may be apart that were added up in different orders.

    SAFETY · eps · sqrt(terms) · scale: each of `terms` roundings errs by at most half an epsilon of the running sum,
    independently. terms: length of the longest chain of sums between input and result, layer by layer added up;
    scale: the largest magnitude that a sum takes.
    """
    return SAFETY * torch.finfo(dtype).eps * math.sqrt(terms) * scale


def close(found: torch.Tensor, wanted: torch.Tensor, terms: int) -> bool:
    """Equal but for the order of sums in float32, at the size of the largest entry; whole numbers are equal."""
    if found.shape != wanted.shape or not wanted.is_floating_point():
        return torch.equal(found, wanted)
    scale = wanted.abs().max().item() if wanted.numel() else 0.0
    return bool(((found.double() - wanted.double()).abs() <= tolerance(terms, scale)).all())


@dataclass
class Act:
    """One decision of a run: of a token, of the slots that stay, of the codes in new pages."""

    kind: str
    made: list[torch.Tensor]
    given: list[torch.Tensor] = field(default_factory=list)
    margin: float = math.inf

    def differs(self, other: "Act") -> bool:
        """Pages differ where what is read from them does by more than rounding: a code fell the other way."""
        if [x.shape for x in self.made] != [x.shape for x in other.made]:
            return True
        pairs = zip(self.made, other.made, strict=True)
        return any(relative(a, b) > MARGIN if self.kind == "page" else not torch.equal(a, b) for a, b in pairs)

    def apart(self, other: "Act") -> float:
        """How far the two runs' inputs are apart, relative to the largest: the margin is at most that wide."""
        pairs = list(zip(self.given, other.given, strict=True))
        return max((relative(a, b) if a.shape == b.shape else math.inf for a, b in pairs), default=math.inf)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)).item()


@contextmanager
def decisions() -> Iterator[list[Act]]:
    """What a run decides, in order; a speculative run weighs more tokens than it writes, so they tell nothing of it."""
    acts: list[Act] = []
    noised: list[tuple[torch.Tensor, torch.Tensor]] = []
    gaps: list[float] = []  # of what was chosen since the last token

    def gumbel(*args):
        noised.append((args[3], honest["gumbel"](*args)))
        return noised[-1][1]

    def choose(dist: Distribution, row: int, *args) -> int:
        noised.clear()
        token = honest[Distribution](dist, row, *args)
        scores = dist.scores[row].double()
        for ids, perturbation in noised:
            scores = scores[ids] + perturbation
        best = scores.topk(min(2, len(scores))).values.tolist()
        gaps.append(best[0] - best[1] if len(best) > 1 else math.inf)
        acts.append(Act("token", [torch.tensor(token)], margin=min(gaps)))
        gaps.clear()
        return token

    def bounds(reader, reading):
        """Pages that tie for a row may be read or not: the token after it was as near a thing."""
        found = honest[LServe](reader, reading)
        best = found.amax(1).sort(-1).values
        gaps.append((best.diff(dim=-1).amin() / best.abs().amax()).item())
        return found

    def checked(method, view, budget):
        plan = honest[CacheMethod](method, view, budget)
        if view.stats:
            made = [] if plan is None else [slots for slots in (plan.keep, plan.unread) if slots is not None]
            queries = [] if view.queries is None else [view.queries]
            acts.append(Act("slots", made, [*view.stats.values(), *queries]))
        return plan

    def pack(codec, k, v, *rest):
        rows = honest["pack"](codec, k, v, *rest)
        acts.append(Act("page", list(codec.unpack(rows)[:2]), [k, v]))
        return rows

    honest = {Distribution: Distribution.choose, CacheMethod: CacheMethod.checked, "pack": Affine.pack}
    honest |= {"gumbel": noise.gumbel, LServe: LServe.bounds}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Distribution, "choose", choose))
        stack.enter_context(mock.patch.object(noise, "gumbel", gumbel))
        stack.enter_context(mock.patch.object(native, "code_for", lambda rows: None))  # it makes noise of its own
        stack.enter_context(mock.patch.object(Affine, "pack", pack))
        stack.enter_context(mock.patch.object(CacheMethod, "checked", checked))
        stack.enter_context(mock.patch.object(LServe, "bounds", bounds))
        yield acts


def margins(decode: Callable[[], list[int]]) -> list[float]:
    """In nats, by how much a plain run preferred each of its tokens to the next best."""
    with decisions() as acts:
        decode()
    return [act.margin for act in acts if act.kind == "token"]


def first_difference(plain: list[Act], found: list[Act], text: list[int]) -> tuple[str, float]:
    """The first decision that differs, in words, and its margin in the plain run.

    plain, found: what both runs decided; text: what the second run wrote.
    """
    others, tokens = iter([act for act in found if act.kind != "token"]), 0
    for act in plain:
        if act.kind == "token":
            if tokens >= len(text) or text[tokens] != int(act.made[0]):
                return f"token {tokens}", act.margin
            tokens += 1
        elif (other := next(others, None)) is None or act.kind != other.kind:
            return f"{act.kind} before token {tokens}", math.inf
        elif act.differs(other):
            return f"{act.kind} before token {tokens}", act.apart(other)
    return "the length", math.inf


class Texts:
    """Texts that must be equal, and the few pairs forgiven: a near-tie decided by rounding is no bug.

    A pair is forgiven where the first decision that differs had a margin below 1e-4 in the plain run, and both texts
    are equal in float64. More than 2 % forgiven is a failure (`assert_few`).
    """

    def __init__(self) -> None:
        self.compared = 0
        self.forgiven: list[str] = []

    def same(
        self,
        what: str,
        plain: Callable[[], list[int]],
        found: Callable[[], list[int]],
        wide: Callable[[], tuple[list[int], list[int]]],
        *,
        expected: list[int] | None = None,
        limit: float = MARGIN,
    ) -> None:
        """Assert that two ways to decode write one text.

        plain, found: decode in float32; they are called again where the texts differ. wide: both in float64; expected:
        the text of `plain` where it is known already.
        """
        self.compared += 1
        expected, text = plain() if expected is None else expected, found()
        if text == expected:
            return
        with decisions() as ours:
            again = plain()
        assert again == expected, f"{what}: the plain run does not repeat"
        with decisions() as theirs:
            found()
        where, margin = first_difference(ours, theirs, text)
        one, other = wide()
        line = f"{what}: {where} differs, margin {margin:.1e}; float64 {'agrees' if one == other else 'DIFFERS TOO'}"
        print(line)
        assert margin < limit and one == other, line
        self.forgiven.append(line)

    def assert_few(self) -> None:
        """At most one text in fifty was forgiven."""
        assert len(self.forgiven) <= SHARE * self.compared, "\n".join(self.forgiven)
