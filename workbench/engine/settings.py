"""What a run is asked to do, beside its decoder: sampling, seed, where to end, what to log."""

import copy
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.engine.sampling import Sampling, name_of
from workbench.errors import BadInput, shown
from workbench.values import items, whole
from workbench_kernels.noise import seed_of_sample

__all__ = ["LEVELS", "Settings", "holds", "read_force", "refuse_stateful"]

LEVELS = ("off", "default", "full")
MANY = 2**20  # ids in a list: more than any context


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    sample: which of the samples of that seed; each has draws of its own, and 0 is the run without the word.
    stop: texts that end the run once the joined new text contains one; or callables (new ids) -> bool.
    force: ids to score instead of sampling, by index of the new token (a list, or a mapping for some indices only).
    prompt_rows: log the distribution at every token of the prompt as well, in the prefill.
    level: `off` tokens only, `default` all but attention mass and kept rows, `full`.
    eos_ids: ids that end the run; empty where end-of-text is ignored.
    cache: the target's cache stack (`workbench.cache.Stack`); None keeps every token as it is.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    sample: int = 0
    max_new_tokens: int = 64
    stop: tuple[str | Callable[[Sequence[int]], bool], ...] = ()
    force: Mapping[int, int] = field(default_factory=dict)
    level: str = "default"
    prompt_rows: bool = False
    eos_ids: frozenset[int] = frozenset()
    cache: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise BadInput(f"sampling: expected workbench.Sampling(…), got {shown(self.sampling)}")
        if not isinstance(self.level, str) or self.level not in LEVELS:
            raise BadInput(f"level: expected one of {', '.join(LEVELS)}, got {shown(self.level)}")
        if not isinstance(self.prompt_rows, bool):
            raise BadInput(f"prompt_rows: expected True or False, got {shown(self.prompt_rows)}")
        read = {
            "max_new_tokens": _integer("max_new_tokens", self.max_new_tokens, 1, "an integer of at least 1"),
            "seed": _integer("seed", self.seed, 0, "an integer in [0, 2^63)", 2**63),
            "sample": _integer("sample", self.sample, 0, "an integer in [0, 2^63)", 2**63),
            "stop": _read_stop(self.stop),
            "force": read_force(self.force),
            "eos_ids": _read_eos(self.eos_ids),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @property
    def noise_seed(self) -> int:
        """The seed that every draw of this run takes: that of its sample."""
        return seed_of_sample(self.seed, self.sample)


def _integer(name: str, value: Any, least: int, wanted: str, below: int | None = None) -> int:
    number = whole(value)
    if number is None or number < least or (below is not None and number >= below):
        raise BadInput(f"{name}: expected {wanted}, got {shown(value)}")
    return number


def _read_stop(stop: Any) -> tuple[str | Callable, ...]:
    """Texts and callables; one alone needs no list, and a set is put in order."""
    if stop is None:
        return ()
    entries = (stop,) if isinstance(stop, str) or (callable(stop) and not isinstance(stop, Collection)) else stop
    listed = isinstance(entries, Sequence | Set) and not isinstance(entries, bytes | bytearray)
    for entry in entries if listed else ():
        if isinstance(entry, type) or not (callable(entry) or (isinstance(entry, str) and entry)):
            raise BadInput(f"stop: expected non-empty texts or callables (new ids) -> bool, got {shown(entry)}")
    if not listed:
        raise BadInput(f"stop: expected a text, a callable, or a list of them, got {shown(stop)}")
    return tuple(sorted(entries, key=str) if isinstance(entries, Set) else entries)


def _read_eos(ids: Any) -> frozenset[int]:
    found = [whole(i) for i in (ids if isinstance(ids, Set) else items("eos_ids", ids, "token ids", MANY))]
    if None in found or min(found, default=0) < 0:
        raise BadInput(f"eos_ids: expected token ids, got {shown(ids)}")
    return frozenset(found)


def read_force(force: Any, vocab_size: int | None = None, limit: int | None = None) -> dict[int, int]:
    """Ids to score by index of the new token, from a list (or array) of ids or a mapping of some indices.

    vocab_size, limit: where known, ids must be below the one and indices below the other, the run's `max_new_tokens`.

    Raises BadInput for anything else: what cannot take effect is not taken in silence.
    """
    if force is None:
        return {}
    if not isinstance(force, Mapping):
        force = dict(enumerate(items("force", force, "a list of token ids, or {index: id}", MANY)))
    read: dict[int, int] = {}
    for given, token in force.items():
        index, number = whole(given), whole(token)
        if index is None or index < 0:
            raise BadInput(f"force: expected the index of a new token, 0 or more, got {shown(given)}")
        if number is None or number < 0 or (vocab_size is not None and number >= vocab_size):
            most = "" if vocab_size is None else f" in [0, {vocab_size})"
            raise BadInput(f"force: id {shown(token)} at {index}: expected a token id{most}")
        if limit is not None and index >= limit:
            raise BadInput(f"force: token {index} lies beyond max_new_tokens={limit}; raise it, or force fewer")
        read[index] = number
    return read


def holds(stop: Callable, new: Sequence[int]) -> bool:
    """What a stop callable says of the new ids; BadInput, naming it, where that is neither true nor false."""
    said = stop(new)
    try:
        return bool(said)
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(f"stop: {name_of(stop)} returned {shown(said)}; expected True or False") from None


def refuse_stateful(
    processors: Sequence[Callable],
    vocab_size: int,
    device: torch.device,
    why: str = "a speculative decoder calls it several times a token",
) -> None:
    """Raise BadInput where a processor is not pure in (ids, scores), and say why it must be.

    Tried on a copy where it can be copied: the same call must give the same scores and leave its state as it was.
    """
    ids = torch.arange(min(vocab_size, 8), device=device)[None]
    scores = torch.linspace(-1, 1, vocab_size, device=device)[None]
    for original in processors:
        try:
            processor = copy.deepcopy(original)
        except Exception:  # an uncopyable object is tried itself
            processor = original
        try:
            processor(ids, scores.clone())
            state = _state(processor)
            pure = torch.equal(*(processor(ids, scores.clone()) for _ in range(2))) and _state(processor) == state
        except Exception:  # these are not the ids of the run: what is wrong will show there
            continue
        if not pure:
            raise BadInput(
                f"processor {name_of(original)} is stateful: {why};"
                " expected scores that depend on (input_ids, scores) alone"
            )


def _state(processor: Callable) -> bytes:
    """What a processor keeps between calls. Generators are left out: one that matters shows in the results."""
    processor = getattr(processor, "inner", processor)  # of a row of a batch
    held = vars(processor) if hasattr(processor, "__dict__") else {}
    cells = [cell.cell_contents for cell in getattr(processor, "__closure__", None) or ()]
    try:
        return pickle.dumps(({k: v for k, v in held.items() if not isinstance(v, torch.Generator)}, cells))
    except Exception:  # state that cannot be written down is judged by its results alone
        return b""
