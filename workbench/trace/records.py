"""What a decoder hands to the recorder: one `Step` per round, plain Python values only.

Columns are named as in `schema.py`. A column may be missing (at level `off` only `token_id` and `source` are there);
all columns present in one mapping have the same length.
"""

from dataclasses import dataclass, field
from typing import Any

Columns = dict[str, list]


@dataclass(slots=True)
class Step:
    """The record of one round.

    Attributes
    ----------
    mode: `prefill`, `plain`, `chain`, `tree`, or another of `schema.MODES`.
    tokens: columns of the tokens table for the committed tokens, in order; `index`, `position`, `round`, `text` and
        `bytes` are added when the round is recorded.
    texts: what each committed token adds to the text.
    note: what is to be said of the run's end, where it ends with this round.
    rest: what the last of them lacks if the text ends with this round: U+FFFD for an incomplete character.
    prompt: columns as of `tokens` for the prompt's own tokens from the second on, where they were asked for.
    drafts: columns of the drafts table, one entry per tree node but the root; node numbers start at 1, the root
        (the pending token) is 0.
    hypotheses, canvas, reads, requests: columns of these tables.
    forwards: columns of the forwards table, one entry per forward pass.
    ms: wall-clock milliseconds of the phases `draft`, `target`, `verify`, `commit`, `cache`, `recording`, `total`.
    cache: role ("target", "draft") -> columns over layers of the cache table, bytes by kind.
    bits: rows of the bits table that changed in a way not implied by appending at the store's own width.
    inputs: what decided in the round and does not follow from its state and the seed, by name (see `Round.input`).
    figures: the decoder's state after the round (mu, window mean, active model, …).
    decisions: `decision` events raised in this round.
    cache_events: `cache` events raised in this round (quantize, evict, merge, …).
    rows: level `full` only, content of a `rows` event.
    flags: names of values that were infinite or NaN and were written as null.
    """

    mode: str
    tokens: Columns = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    rest: str = ""
    note: str = ""
    prompt: Columns = field(default_factory=dict)
    drafts: Columns = field(default_factory=dict)
    hypotheses: Columns = field(default_factory=dict)
    canvas: Columns = field(default_factory=dict)
    reads: Columns = field(default_factory=dict)
    requests: Columns = field(default_factory=dict)
    forwards: Columns = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    cache: dict[str, Columns] = field(default_factory=dict)
    bits: Columns = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    decisions: list[dict] = field(default_factory=list)
    cache_events: list[dict] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    bonus: bool = False
    stop_reason: str | None = None
    budget: int | None = None
    depth: int = 0
    context: int = 0
