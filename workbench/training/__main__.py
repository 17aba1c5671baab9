"""Train a part for a target, or write the card of a folder of parts.

python -m workbench.training PART --target NAME --out DIR [--minutes 8]
python -m workbench.training card --out DIR
"""

import argparse
from dataclasses import replace
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.models.loading import load
from workbench.training.card import write_card
from workbench.training.data import make_text
from workbench.training.fit import fit
from workbench.training.parts import PARTS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m workbench.training", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*sorted(PARTS), "card"])
    parser.add_argument("--target", default="embedded", help="a name, hub id or directory that workbench.load takes")
    parser.add_argument("--out", type=Path, required=True, help="folder for text, checkpoints and weights")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--tokens", type=int, help="another number of training tokens")
    parser.add_argument("--text", type=int, default=500_000, help="tokens of text to make; seen several times")
    parser.add_argument("--device", help="cpu (default), cuda or auto")
    options = parser.parse_args(arguments)
    if options.part == "card":
        print(write_card(options.out))
        return
    part = PARTS[options.part]
    recipe = part.recipe if options.tokens is None else replace(part.recipe, tokens=options.tokens)
    try:
        lm = load(options.target, device=options.device)
    except WorkbenchError as error:
        parser.exit(2, f"{error}\n")
    text = make_text(lm, options.text, options.out)
    print(fit(options.part, part, lm, text, options.out, options.minutes, recipe))


if __name__ == "__main__":
    main()
