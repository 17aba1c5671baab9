"""Presets: runs that teach something, and what to look at in each."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import workbench as wb
from workbench import H2O, KIVI, ConfidenceStop, CopySpec, DraftModel, FixedLength, Speculative, Stack

CIRCLE = '''class Circle:
    """A circle around the origin."""

    def __init__(self, radius):
        self.radius = radius

    def area(self):
        return math.pi * self.radius ** 2

    def scale(self, factor):
        self.radius = self.radius * factor


'''
EDIT = CIRCLE + CIRCLE.replace("Circle", "Disc").partition("\n        return")[0]
PROSE = "Dear aunt Agatha, thank you for the marmalade. The weather in Trieste"


@dataclass(frozen=True)
class Preset:
    """A run to start from. look: what it shows, in a sentence or two; at: the token to look at first; turn: the token
    from which the recorded run has its cache, full before."""

    prompt: str
    decoder: Any
    look: str
    cache: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    at: int | None = None
    turn: int | None = None


@cache
def presets() -> dict[str, Preset]:
    """Name -> preset."""
    held_out = {row["id"]: row["prompt"] for row in wb.held_out_prompts()}
    long = "\n\n".join(list(held_out.values())[:2])
    return {
        "cache cliff": Preset(
            held_out["colorsys.py:99:hls_to_rgb"],
            Speculative(drafter=DraftModel(), shape=ConfidenceStop(max_length=8, threshold=0.5)),
            "From token 40 on the cache keeps 128 tokens a head, the old ones in 4 bits: bytes and bits fall off a"
            " cliff, and so may the text: against the full cache it is another one.",
            cache=Stack(H2O(budget=128), KIVI(bits=4)),
            settings={"temperature": 0.8, "top_p": 0.95, "seed": 1, "max_new_tokens": 96},
            at=40,
            turn=40,
        ),
        "uncertain code": Preset(
            held_out["colorsys.py:99:hls_to_rgb"],
            Speculative(drafter=DraftModel(), shape=ConfidenceStop(max_length=8, threshold=0.5)),
            "Entropy is high where a new name or branch begins and low inside it. The draft stops where its own"
            " confidence falls: compare the entropy curve with the length of the drafts.",
            settings={"temperature": 0.8, "seed": 1, "max_new_tokens": 96},
        ),
        "copy-heavy edit": Preset(
            EDIT,
            Speculative(drafter=CopySpec(ngram=3), shape=FixedLength(12)),
            "The second class repeats the first, so copying from the prompt drafts a dozen tokens for free: look at"
            " tokens per target forward, and at where a copy is refused.",
            settings={"max_new_tokens": 64},
        ),
        "long context": Preset(
            long,
            Speculative(drafter=DraftModel()),
            "A long prompt under a cache that keeps 256 slots per head and stores old ones in 4 bits: the cache map"
            " shows what stays, the ledger what it saves, and the text may differ from the full cache's.",
            cache=Stack(H2O(budget=256), KIVI(bits=4)),
            settings={"max_new_tokens": 96},
        ),
        "draft gone wrong": Preset(
            PROSE,
            Speculative(drafter=DraftModel(), shape=FixedLength(12)),
            "Long chains on a text neither model knows, sampled hot: nearly every draft is refused early, and the"
            " figure 'break-even' says what that costs. The text is still the target's own.",
            settings={"temperature": 1.3, "max_new_tokens": 64, "seed": 3},
        ),
    }
