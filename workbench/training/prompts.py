"""The held-out prompts that ship with the embedded models: stubs of functions the models never saw."""

import json
from functools import cache

from workbench.training.corpus import PROMPTS


@cache
def _rows() -> tuple[dict, ...]:
    return tuple(json.loads(line) for line in PROMPTS.read_text().splitlines())


def held_out_prompts(limit: int | None = None) -> list[dict]:
    """Rows {"id", "prompt", "reference"}: Python source up to a function's body, and the body that followed."""
    return [dict(row) for row in _rows()[:limit]]
