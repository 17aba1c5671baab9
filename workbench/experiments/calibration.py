"""How often the first, second, … child of a node is the one accepted: what static trees are planned from.

    python -m workbench.experiments.calibration --name draft_model --drafter draft_model [--temperature 0.8]

measures a drafter on training text that the embedded target goes on with, and writes it under that name into
`speculation/shapes/calibration.json`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import workbench.speculation.shapes.sequoia as sequoia
from workbench.api import decode
from workbench.declare import build
from workbench.decoders import Speculative
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import prompts_of
from workbench.models.loading import load
from workbench.speculation.drafters import Drafter
from workbench.speculation.shapes import FixedTree
from workbench.speculation.verifiers import Rejection, SeededMatch
from workbench.training import corpus

FILE = Path(sequoia.__file__).with_name("calibration.json")


def calibrate(
    lm: LanguageModel,
    drafter: Drafter,
    prompts: Sequence[str | Sequence[int]],
    temperature: float = 0.0,
    ranks: int = 8,
    max_new_tokens: int = 128,
) -> list[float]:
    """p[b] for b < `ranks`: the probability that a node's child b is the first of its siblings to be accepted.

    Every prompt is decoded with two levels of `ranks` children each, by rejection at temperature > 0; all nodes whose
    children were tested count, so the second level weighs in as often as it is reached.
    """
    decoder = Speculative(drafter, FixedTree((ranks, ranks)), Rejection() if temperature else SeededMatch())
    tests: list[tuple[int | None, int]] = []
    for prompt in prompts_of(prompts):
        drafts = decode(lm, prompt, decoder, max_new_tokens=max_new_tokens, temperature=temperature).drafts
        for _, children in drafts.groupby(["round", "parent"]):
            fates = children["fate"].tolist()
            if {"accepted", "rejected"} & set(fates):
                tests.append((fates.index("accepted") if "accepted" in fates else None, len(fates)))
    return [round(chance, 4) for chance in sequoia.acceptance_by_rank(tests)]


def training_prompts(lm: LanguageModel, count: int, length: int = 128) -> list[list[int]]:
    """Beginnings of the first `count` documents of the corpus, none of them a held-out one."""
    texts = corpus.documents("train", strict=False)[: 4 * count : 4]
    return [lm.tokenizer.encode(text)[:length] for text in texts]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workbench.experiments.calibration", description=__doc__)
    parser.add_argument("--name", required=True, help="what Sequoia(calibration=…) will call it")
    parser.add_argument("--drafter", default="draft_model")
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=int, default=24)
    options = parser.parse_args(arguments)
    lm = load(options.target)
    prompts = training_prompts(lm, options.prompts)
    known = json.loads(FILE.read_text())
    known[options.name] = calibrate(lm, build("drafter", options.drafter), prompts, options.temperature)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(known.items()))
    FILE.write_text(f"{{\n{lines}\n}}\n")
    print(options.name, known[options.name])


if __name__ == "__main__":
    main()
