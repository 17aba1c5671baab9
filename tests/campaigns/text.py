"""Many random sequences: their texts, token by token, against the tokenizer's own decoding of the whole.

python -m tests.campaigns.text [--sequences 5000] [--out FILE]
"""

import argparse
import json
import platform
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.engine.vocabularies import KINDS, READERS, added, sequence, texts_of
from workbench.engine.text import decode
from workbench.provenance import versions

__all__ = ["check"]

OUT = Path(__file__).parents[2] / "benchmarks" / "results" / "trust-text.json"
LENGTH = 60  # tokens of a sequence at most, prompt and output


def check(kind: str, sequences: int, seed: str = "") -> dict[str, Any]:
    """How many sequences of one kind of tokenizer, cut at random into prompt and output, read as the tokenizer's own
    decoding; and how many cover what is hard: prompts that end inside a character (crossed), text held back (held)."""
    tokenizer, draw = KINDS[kind](), random.Random(f"{kind} {seed}")
    found = {"kind": kind, "reader": READERS[kind], "sequences": sequences}
    found |= dict.fromkeys(("tokens", "crossed", "held", "differing"), 0)
    for _ in range(sequences):
        ids = sequence(draw, kind, len(tokenizer), draw.randint(2, LENGTH))
        cut = draw.randint(1, len(ids) - 1)
        prompt, new = ids[:cut], ids[cut:]
        texts = texts_of(tokenizer, prompt, new)
        found["tokens"] += len(new)
        found["crossed"] += not decode(tokenizer, ids).startswith(decode(tokenizer, prompt))
        found["held"] += "" in texts
        found["differing"] += "".join(texts) != added(tokenizer, prompt, new)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=5000, help="of each kind of tokenizer")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for kind in sorted(KINDS):
        rows.append(check(kind, options.sequences))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    conditions = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor() or platform.machine()}
    conditions |= {"versions": versions(), "length": LENGTH}
    options.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
