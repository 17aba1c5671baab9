"""Train a part for a target, or the embedded models. Resumable: run it again to go on.

python -m workbench.training PART --target NAME --out DIR [--minutes 8]
python -m workbench.training card --out DIR                                 # of a folder of parts
python -m workbench.training tokenizer
python -m workbench.training target | target-long | draft [--out DIR] [--minutes 60]
python -m workbench.training export [--out DIR]                             # bf16 safetensors and the models' cards
"""

import argparse
from dataclasses import replace
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.models.loading import load
from workbench.training.card import write_card
from workbench.training.data import make_text
from workbench.training.export import export
from workbench.training.fit import fit
from workbench.training.parts import PARTS, STAGES
from workbench.training.stage import train_stage, train_tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m workbench.training", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*sorted(PARTS), "card", "tokenizer", *STAGES, "export"])
    parser.add_argument("--out", "--work", type=Path, default=Path("training"), help="folder for all that is made")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--tokens", type=int, help="another number of training tokens")
    parts = parser.add_argument_group("parts")
    parts.add_argument("--target", default="embedded", help="a name, hub id or directory that workbench.load takes")
    parts.add_argument("--text", type=int, default=500_000, help="tokens of text to make; seen several times")
    parts.add_argument("--device", help="cpu (default), cuda or auto")
    models = parser.add_argument_group("embedded models")
    models.add_argument("--any-python", action="store_true", help="accept another Python's standard library")
    models.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    options = parser.parse_args(arguments)
    what, out = options.what, options.out
    if what == "card":
        print(write_card(out))
    elif what == "tokenizer":
        train_tokenizer()
    elif what == "export":
        export(out)
    elif what in STAGES:
        train_stage(what, STAGES[what], out, options.minutes, options.tokens, not options.any_python, options.compile)
    else:
        part = PARTS[what]
        recipe = part.recipe if options.tokens is None else replace(part.recipe, tokens=options.tokens)
        try:
            lm = load(options.target, device=options.device)
        except WorkbenchError as error:
            parser.exit(2, f"{error}\n")
        print(fit(what, part, lm, make_text(lm, options.text, out), out, options.minutes, recipe))


if __name__ == "__main__":
    main()
