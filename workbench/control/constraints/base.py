"""What a constraint is, and what a run makes of it: masks by the new ids."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, takewhile
from typing import Any, Protocol

import torch

from workbench.declare import Declared
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import need_tokenizer
from workbench.engine.settings import Settings
from workbench.engine.text import reader_of, token_text
from workbench.errors import BadInput, shown

MEMO = 256  # places of a run whose matchers are kept


class Matcher(Protocol):
    """Where a text stands in a constraint. Never changes."""

    complete: bool  # the text may end here

    def mask(self) -> torch.Tensor:
        """bool [V]: the tokens of text that may come next."""

    def after(self, token: int) -> "Matcher | None":
        """Where the text stands with one token more; None where that is outside."""


class Constraint(Declared):
    """Base of all constraints. `start(lm, prompt_ids)` gives the matcher at the prompt's end.

    What it allows follows from the new ids alone (and the prompt), so it holds under every decoder. Raises BadInput
    where the constraint is none, Unsupported where it grows too large on the way.
    """

    family = "constraint"

    def start(self, lm: LanguageModel, prompt_ids: Sequence[int]) -> Matcher:
        raise NotImplementedError


def pieces_of(lm: LanguageModel) -> tuple[bytes, ...]:
    """The text of every id of a model in UTF-8; empty for special tokens, and ids that are no token."""
    need_tokenizer(lm, "constraint", "a grammar")
    return _pieces(lm.tokenizer, len(lm.tokenizer), lm.vocab_size)


@lru_cache(maxsize=8)
def _pieces(tokenizer: Any, known: int, size: int) -> tuple[bytes, ...]:
    reader = reader_of(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*getattr(tokenizer, "all_special_ids", ()), *(id for id, one in added.items() if one.special)}
    found = [None if id in special else reader.piece(id) for id in range(min(known, size))]
    texts = [piece.encode() if isinstance(piece, str) else piece or b"" for piece in found]
    return (*texts, *[b""] * (size - len(texts)))


@dataclass(slots=True)
class _Place:
    matcher: Matcher | None  # None: the text is outside, or over
    over: bool = False
    mask: torch.Tensor | None = None


class Masks:
    """The masks of one run, by the ids since its prompt's end. They follow from these alone: what is remembered, of at
    most `memo` places, only saves work, and is shared by forks.

    An end-of-text id may come exactly where the text may end, and nothing comes behind it.
    """

    def __init__(
        self,
        constraint: Constraint,
        lm: LanguageModel,
        prompt_ids: Sequence[int],
        eos_ids: frozenset[int],
        memo: int = MEMO,
    ):
        self.of = (constraint, eos_ids)
        self.lm, self.prompt, self.eos = lm, len(prompt_ids), sorted(id for id in eos_ids if id < lm.vocab_size)
        self._first, self._most = _Place(constraint.start(lm, prompt_ids)), memo
        self._memo: OrderedDict[tuple[int, ...], _Place] = OrderedDict()
        self._lock = threading.RLock()

    def rows(
        self, number: int, prefixes: Callable[[int], Sequence[int]], device: torch.device
    ) -> tuple[torch.Tensor, list[bool]] | None:
        """bool [number, V], what may come after each prefix (ids with the prompt's), and where that is a constraint's
        word; None where it nowhere is. In the prompt, outside, and where the text cannot go on, all may: no run comes
        there.
        """
        found = [self.allowed(prefixes(row)) for row in range(number)]
        if all(mask is None for mask in found):
            return None
        free = torch.ones(self.lm.vocab_size, dtype=torch.bool)
        rows = torch.stack([free if mask is None else mask for mask in found])
        return rows.to(device), [mask is not None for mask in found]

    def allowed(self, ids: Sequence[int]) -> torch.Tensor | None:
        """bool [V]: what may come after prompt and new ids; None in the prompt, outside, and where nothing may."""
        if len(ids) < self.prompt:
            return None
        with self._lock:
            place = self._place(tuple(ids[self.prompt :]))
            if place.matcher is None:
                return None
            if place.mask is None:
                mask = place.matcher.mask().clone()
                mask[self.eos] = place.matcher.complete
                place.mask = mask
            return place.mask if place.mask.any() else None

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether the new ids are within the constraint."""
        with self._lock:
            place = self._place(tuple(ids[self.prompt :]))
            return place.over or place.matcher is not None

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the text may end with the new ids."""
        with self._lock:
            place = self._place(tuple(ids[self.prompt :]))
            return place.over or (place.matcher is not None and place.matcher.complete)

    def note(self, ids: Sequence[int]) -> str:
        """What is to be said of a run that ends with these ids; nothing where its text satisfies the constraint."""
        if self.complete(ids):
            return ""
        stuck = self.allowed(ids) is None
        why = "no token of the vocabulary goes on with it" if stuck else "more was to come"
        return f"the text does not satisfy the constraint: {why}"

    def _place(self, new: tuple[int, ...]) -> _Place:
        known = next((n for n in range(len(new), 0, -1) if new[:n] in self._memo), 0)
        place = self._memo[new[:known]] if known else self._first
        for n in range(known, len(new)):
            place = self._after(place, new[n])
            self._memo[new[: n + 1]] = place
            if len(self._memo) > self._most:
                self._memo.popitem(last=False)
        if known == len(new) and known:
            self._memo.move_to_end(new)
        return place

    def _after(self, place: _Place, token: int) -> _Place:
        if place.matcher is None:
            return _Place(None)
        if token in self.eos:
            return _Place(None, over=place.matcher.complete)
        return _Place(place.matcher.after(token))


def bound(settings: Settings, state: Any) -> Settings:
    """The settings of a run with the masks of its constraint. state: of the run, at its present text.

    Raises BadInput where its text, or a forced token, is outside the constraint, and where nothing may follow it.
    """
    constraint, held = settings.constraint, settings.sampling.masks
    if constraint is None:
        return settings if held is None else replace(settings, sampling=replace(settings.sampling, masks=None))
    held = held or state.settings.sampling.masks
    if held is None or held.of != (constraint, settings.eos_ids):
        lm = state.runners["target"].model
        held = Masks(constraint, lm, state.tokens[: state.prompt_length], settings.eos_ids)
    _refuse_outside(held, state, settings)
    return replace(settings, sampling=replace(settings.sampling, masks=held))


def _refuse_outside(masks: Masks, state: Any, settings: Settings) -> None:
    tokens, forced = state.tokens, settings.force
    name = f"constraint {settings.constraint.declared_name!r}"
    if not masks.holds(tokens):
        raise BadInput(f"{name} does not allow the text so far; expected a place before it parts from the constraint")
    first = len(tokens) - state.prompt_length
    if masks.allowed(tokens) is None:
        where = "follow the text so far; go back" if first else "begin; expected one that text can be written under"
        raise BadInput(f"{name}: no token of {masks.lm.name!r} may {where}")
    given = [*takewhile(lambda index: index in forced, count(first))]
    if later := [index for index in forced if index >= first + len(given)]:
        raise BadInput(
            f"force: token {min(later)} cannot be held against the constraint before those ahead of it are known;"
            f" force tokens {first} to {min(later)} without a gap, or leave the constraint out"
        )
    ids = list(tokens)
    for index in given:
        ids.append(forced[index])
        if not masks.holds(ids):
            text = shown(token_text(masks.lm.tokenizer, forced[index]))
            raise BadInput(f"force: id {forced[index]} ({text}) at {index} is outside {name}; expected one it allows")
