"""What a run is asked to do, beside its decoder: sampling, seed, where to end, what to log."""

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.engine.sampling import Sampling
from workbench.errors import BadInput

__all__ = ["LEVELS", "Settings", "refuse_stateful"]

LEVELS = ("off", "default", "full")


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    stop: texts that end the run once the joined new text contains one; or callables (new ids) -> bool.
    force: ids to score instead of sampling, by index of the new token (a list, or a mapping for some indices only).
    prompt_rows: log the law at every token of the prompt as well, in the prefill.
    level: `off` tokens only, `default` all but attention mass and kept rows, `full`.
    eos_ids: ids that end the run; empty where end-of-text is ignored.
    cache: the target's cache stack (`workbench.cache.Stack`); None keeps every token as it is.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_new_tokens: int = 64
    stop: tuple[str | Callable[[Sequence[int]], bool], ...] = ()
    force: Mapping[int, int] = field(default_factory=dict)
    level: str = "default"
    prompt_rows: bool = False
    eos_ids: frozenset[int] = frozenset()
    cache: Any = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadInput(f"level: expected one of {', '.join(LEVELS)}, got {self.level!r}")
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise BadInput(f"max_new_tokens: expected an integer of at least 1, got {self.max_new_tokens!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise BadInput(f"seed: expected an integer in [0, 2^63), got {self.seed!r}")
        stop = (self.stop,) if isinstance(self.stop, str) or callable(self.stop) else tuple(self.stop or ())
        for entry in stop:
            if not callable(entry) and (not isinstance(entry, str) or not entry):
                raise BadInput(f"stop: expected non-empty texts, got {entry!r}")
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.force, Mapping):
            object.__setattr__(self, "force", dict(enumerate(self.force)))


def refuse_stateful(processors: Sequence[Callable], vocab_size: int, device: torch.device) -> None:
    """Raise BadInput where a processor is not pure in (ids, scores): speculation calls it several times a token.

    Tried on a copy where it can be copied: the same call must give the same scores and leave its state as it was.
    """
    ids = torch.arange(min(vocab_size, 8), device=device)[None]
    scores = torch.linspace(-1, 1, vocab_size, device=device)[None]
    for original in processors:
        try:
            processor = copy.deepcopy(original)
        except Exception:  # an uncopyable object is tried itself
            processor = original
        name = getattr(original, "__name__", type(original).__name__)
        processor(ids, scores.clone())
        state = _state(processor)
        results = [processor(ids, scores.clone()) for _ in range(2)]
        if not torch.equal(*results) or _state(processor) != state:
            raise BadInput(
                f"processor {name} is stateful: a speculative decoder calls it several times a token;"
                " expected scores that depend on (input_ids, scores) alone"
            )


def _state(processor: Callable) -> bytes:
    cells = [cell.cell_contents for cell in getattr(processor, "__closure__", None) or ()]
    try:
        return pickle.dumps((vars(processor) if hasattr(processor, "__dict__") else {}, cells))
    except Exception:  # state that cannot be written down is judged by its results alone
        return b""
