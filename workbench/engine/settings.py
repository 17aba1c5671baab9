"""What a run is asked to do, beside its decoder: sampling, seed, where to end, what to log.

Each setting is declared once, here or in `Sampling`: the keywords of `decode` and `Session`, the options of the command
line, the app's form and the reference page follow.
"""

import copy
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from workbench.cache.stack import as_stack
from workbench.declare import Declared, Field, describe, setting
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import need_tokenizer
from workbench.engine.sampling import Sampling, name_of
from workbench.errors import BadInput, shown
from workbench.values import items, whole
from workbench_kernels.noise import seed_of_sample

LEVELS = ("off", "default", "full")
MANY = 2**20  # ids in a list: more than any context
SEEDS = {"ge": 0, "lt": 2**63, "read": whole}


def _read_sampling(value: Any) -> Sampling:
    if not isinstance(value, Sampling):
        raise BadInput(f"sampling: expected workbench.Sampling(…), got {shown(value)}")
    return value


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


@dataclass(frozen=True)
class Settings(Declared):
    """Settings of one run."""

    sampling: Sampling = setting(
        factory=Sampling,
        kind="object",
        read=_read_sampling,
        help="how the next token is drawn; its fields are keywords",
    )
    constraint: Declared | None = setting(None, family="constraint", help="which texts may be written (default: all)")
    max_new_tokens: int = setting(
        64, ge=1, read=whole, unit="tokens", help="most new tokens of the run; where ids are forced, by default so many"
    )
    stop: tuple[str | Callable[[Sequence[int]], bool], ...] = setting(
        (),
        kind="texts",
        read=_read_stop,
        help="the run ends once the new text contains this; in Python several, and callables (new ids) -> bool",
    )
    max_time: float | None = setting(
        None, gt=0, unit="s", help="the run ends once its rounds, since this was set, have taken so long"
    )
    ignore_eos: bool = setting(False, help="go on after the end-of-text token")
    seed: int = setting(0, **SEEDS, help="of all randomness")
    sample: int = setting(0, **SEEDS, help="which sample of that seed; each has draws of its own")
    level: str = setting(
        "default",
        choices=LEVELS,
        help="what is logged: off, tokens only; default, all but attention mass and kept rows; full",
    )
    prompt_rows: bool = setting(False, help="log the distribution at every token of the prompt, too")
    force: Mapping[int, int] = setting(
        factory=dict, kind="object", read=read_force, help="ids to score instead of sampling: a list, or {index: id}"
    )
    cache: Any = setting(
        None, kind="object", read=as_stack, help="a policy, quantizer or reader, a list of these in order, or a name"
    )
    eos_ids: frozenset[int] = setting(
        frozenset(), kind="object", read=_read_eos, help="ids that end the run; none where end-of-text is ignored"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_eos:
            object.__setattr__(self, "eos_ids", frozenset())

    @property
    def noise_seed(self) -> int:
        """The seed that every draw of this run takes: that of its sample."""
        return seed_of_sample(self.seed, self.sample)

    def options(self) -> dict[str, Any]:
        """The keywords that ask for these settings, with their values."""
        own = {entry.name for entry in describe(Settings)}
        return {name: getattr(self if name in own else self.sampling, name) for name in keywords()}


@cache
def keywords() -> dict[str, Field]:
    """The keywords that `decode` and `Session` share, by name."""
    entries = [*describe(Sampling), *describe(Settings)]
    return {entry.name: entry for entry in entries if entry.name not in ("sampling", "eos_ids")}


def with_keywords(documented: Any) -> Any:
    """Decorator: put the keywords, as they are declared, in the place of KEYWORDS in a docstring."""
    if not documented.__doc__:  # python -OO
        return documented
    lines = [f"{entry.name}: {entry.help} ({entry.facts})" for entry in keywords().values()]
    indent = documented.__doc__.partition("KEYWORDS")[0].rpartition("\n")[2]
    documented.__doc__ = documented.__doc__.replace("KEYWORDS", f"\n{indent}".join(lines))
    return documented


def make_settings(lm: LanguageModel, base: Settings | None = None, **options: Any) -> Settings:
    """`Settings` from the keywords that `decode` and `Session` share, on top of `base`.

    Raises BadInput for an unknown keyword or a value out of bounds.
    """
    base = base or Settings(eos_ids=lm.eos_ids)
    own, drawn = ({entry.name for entry in describe(cls)} for cls in (Settings, Sampling))
    if unknown := set(options) - own - drawn:
        raise BadInput(f"unknown setting {min(unknown)!r}; known: {', '.join(sorted(own | drawn))}")
    if "ignore_eos" in options:
        options["eos_ids"] = lm.eos_ids
    elif "eos_ids" in options:
        options["ignore_eos"] = False
    forced = options.get("force")
    if "force" in options:
        options["force"] = read_force(forced, lm.vocab_size)
        if not isinstance(forced, Mapping) and options["force"]:
            options.setdefault("max_new_tokens", len(options["force"]))
    chosen = {name: options.pop(name) for name in drawn & set(options)}
    options["sampling"] = replace(_read_sampling(options.get("sampling", base.sampling)), **chosen)
    settings = replace(base, **options)
    read_force(forced, lm.vocab_size, settings.max_new_tokens)  # what was asked for here must be able to happen
    for stop in settings.stop:
        if isinstance(stop, str):
            need_tokenizer(lm, "stop", stop)
    return settings


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
