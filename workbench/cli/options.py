"""What commands share: their parser, options of the model, of sampling and of members, and how they print."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from workbench.cli.preparing import preparing
from workbench.errors import BadInput

GIVEN_APART = ("object", "member")  # kinds of settings that are no option, or one of `add_members`


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see: {self.prog} --help)")


def add_model(parser: Parser) -> None:
    parser.add_argument("--model", default="embedded", help="embedded, embedded-draft, a hub id or a local directory")
    parser.add_argument("--device", help="cpu (default), cuda, cuda:1 or auto")
    parser.add_argument("--dtype", help="float32, bfloat16, … (default: float32 on a CPU, else the checkpoint's own)")
    parser.add_argument("--weights", help="bfloat16 or int4: rounded to it, whatever the dtype computed in")


def add_settings(parser: Parser) -> None:
    """The options of a run, as they are declared; one that is not given is left to its default."""
    from workbench.engine.settings import keywords

    for entry in keywords().values():
        words = {"help": f"{entry.help}; {entry.facts}"}
        if entry.kind == "bool":
            words |= {"action": "store_true", "default": None}
        elif entry.kind == "texts":
            words |= {"action": "append", "metavar": "TEXT"}
        else:
            number = {"int": int, "float": float}.get(entry.kind)
            words |= {"type": number or str, "metavar": "N" if number else "NAME"}
        if entry.kind not in GIVEN_APART:
            parser.add_argument(f"--{entry.name.replace('_', '-')}", **words)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    from workbench.engine.settings import keywords

    given = {name: getattr(args, name) for name, entry in keywords().items() if entry.kind not in GIVEN_APART}
    return {name: value for name, value in given.items() if value is not None}


def load_model(args: argparse.Namespace):
    with preparing():
        from transformers.utils.logging import disable_progress_bar

        from workbench import load

        disable_progress_bar()
        return load(args.model, device=args.device, dtype=args.dtype, weights=args.weights)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises BadInput for any other text."""
    found = [text.partition("=") for text in texts]
    for (key, sign, _), text in zip(found, texts, strict=True):
        if not sign or not key.strip():
            raise BadInput(f"{text!r}: expected name=value, such as shape.length=4")
    return {key.strip(): value for key, _, value in found}


def add_members(parser: Parser, parameter: str) -> None:
    """The options of a cache, a constraint, and of parameters of members; parameter: what those are."""
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=parameter)
    text = "a policy, a quantizer, a reader, in this order (repeatable); see: workbench list policies"
    parser.add_argument("--cache", action="append", default=[], metavar="NAME", help=text)
    text = "which texts may be written: regex --set constraint.pattern=[0-9]+; see: workbench list constraints"
    parser.add_argument("--constraint", metavar="NAME", help=text)


def members_of(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The cache and the constraint that are named, with their parameters `cache.…` and `constraint.…` of `--set`; and
    the other parameters there."""
    from workbench.cache.stack import stack_of
    from workbench.declare import build

    values, own = pairs(args.set), {}
    for head in ("cache", "constraint"):
        found = [key for key in values if key.startswith(f"{head}.")]
        own[head] = {key.removeprefix(f"{head}."): values.pop(key) for key in found}
    if own["constraint"] and args.constraint is None:
        raise BadInput("--set constraint.…: name the constraint as well, as --constraint regex")
    constraint = None if args.constraint is None else build("constraint", args.constraint, own["constraint"])
    return {"cache": stack_of(args.cache, own["cache"]), "constraint": constraint}, values


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))
