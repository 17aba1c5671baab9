"""Prompts for a real model: 48 of Spec-Bench, eight of each of six groups, and 24 of HumanEval, by the ids in
`subset.json`; and long texts made of both.

Their files are not part of this project: `spec_bench.jsonl` (https://github.com/hemingkx/Spec-Bench, Apache-2.0) and
`HumanEval.jsonl.gz` (https://github.com/openai/human-eval, MIT) lie in a folder that the benchmarks are given.
"""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

IDS = Path(__file__).with_suffix(".json")


class Prompt(NamedTuple):
    """id: as its source has it. group: `translation`, …, `mt_bench` or `humaneval`. text: what is asked first."""

    id: str
    group: str
    text: str

    def ids(self, lm: Any) -> list[int]:
        """A question through the model's chat template, where it has one; code as it is."""
        chat = self.group != "humaneval" and getattr(lm.tokenizer, "chat_template", None)
        if not chat:
            return lm.tokenizer.encode(self.text)
        found = lm.tokenizer.apply_chat_template([{"role": "user", "content": self.text}], add_generation_prompt=True)
        return list(found["input_ids"] if hasattr(found, "keys") else found)


def _files(folder: Path) -> tuple[dict[int, dict], dict[str, dict]]:
    with (folder / "spec_bench.jsonl").open() as lines, gzip.open(folder / "HumanEval.jsonl.gz", "rt") as problems:
        questions = {row["question_id"]: row for row in map(json.loads, lines)}
        return questions, {row["task_id"]: row for row in map(json.loads, problems)}


def prompts(folder: Path) -> list[Prompt]:
    """All 72. Raises FileNotFoundError where a file is not there, KeyError where it lacks an id."""
    chosen = json.loads(IDS.read_text())
    questions, problems = _files(folder)
    found = [Prompt(str(id), group, questions[id]["turns"][0])
             for group, ids in chosen["spec_bench"].items() for id in ids]  # fmt: skip
    return found + [Prompt(id, "humaneval", problems[id]["prompt"]) for id in chosen["humaneval"]]


def texts(folder: Path, tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """Token ids of `count` texts of a length, articles and code in turn, none of it twice while there is more."""
    questions, problems = _files(folder)
    articles = [row["turns"][0] for row in questions.values() if row["category"] in ("summarization", "rag")]
    code = [row["prompt"] + row["canonical_solution"] for row in problems.values()]
    found: list[list[int]] = []
    streams = [iter(2 * articles), iter(8 * code)]
    for number in range(count):
        ids: list[int] = []
        while len(ids) < length:
            ids += tokenizer.encode(next(streams[number % 2]) + "\n\n")
        found.append(ids[:length])
    return found
