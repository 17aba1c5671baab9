"""What there is to choose from, as text: members of every family, their parameters, the models."""

import inspect
import json

from workbench import declare

__all__ = ["KINDS", "about", "listing"]

FAMILIES = {
    "decoders": "decoder",
    "drafters": "drafter",
    "shapes": "shape",
    "verifiers": "verifier",
    "policies": "policy",
    "quantizers": "quantizer",
}
KINDS = (*FAMILIES, "models", "refusals")


def listing(kind: str) -> str:
    """The names of one kind, a line each; those of installed packages included."""
    if kind == "models":
        return _models()
    if kind == "refusals":
        return _refusals()
    found = [declare.get(FAMILIES[kind], name) for name in declare.names(FAMILIES[kind])]
    lines = [f"{cls.declared_name:18s} {_first_line(cls)}" for cls in found]
    return "\n".join([*lines, *_left_out(FAMILIES[kind])])


def _left_out(family: str) -> list[str]:
    """A line for each plug-in of a family that could not be loaded; one that names no family stands in every list."""
    lines = []
    for name, reason in declare.broken().items():
        head, _, member = name.partition(".")
        if head == family or head not in declare.FAMILIES:
            lines.append(f"{member or name:18s} a plug-in that is left out: {reason}")
    return lines


def about(kind: str, name: str) -> str:
    """One member: what it does, and its parameters with bounds and defaults. Raises BadInput where it is unknown."""
    if kind == "models":
        return _models(name)
    if kind == "refusals":
        return _refusals(name)
    cls = declare.get(FAMILIES[kind], name)
    entries = declare.describe(cls)
    parameters = [f"  {entry.name:14s} {entry.help}\n  {'':14s} {_facts(entry)}" for entry in entries]
    return "\n".join([f"{name}\n", inspect.cleandoc(cls.__doc__ or ""), "", *(parameters or ["  no parameters"])])


def _facts(entry: declare.Field) -> str:
    default = f"default {getattr(entry.default, 'declared_name', entry.default)}"
    if entry.kind == "member":
        return f"one of {', '.join(declare.names(entry.family))}; {default}; its own parameters are {entry.name}.…"
    wanted = f"one of {', '.join(map(str, entry.choices))}" if entry.choices else f"{entry.kind} {entry.bounds}".strip()
    return "; ".join(filter(None, [wanted, entry.unit, default]))


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def _refusals(chosen: str | None = None) -> str:
    """What cannot go together and why: a line per drafter and shape, and per verifier; `chosen`: one member's alone."""
    from workbench.speculation import refusals

    lines = [
        f"{first:14s} {second:20s} {reason}" for first, second, reason in refusals() if chosen in (None, first, second)
    ]
    return "\n".join(lines) or f"nothing is refused with {chosen!r}"


def _models(chosen: str | None = None) -> str:
    from workbench.errors import BadInput
    from workbench.models.loading import EMBEDDED, PRETRAINED, known_models

    if chosen is not None and chosen not in known_models():
        raise BadInput(f"no model is called {chosen!r}; known: {', '.join(known_models())}, hub ids, local directories")
    lines = []
    for name in [chosen] if chosen else known_models():
        text = "registered in this process"
        if name in EMBEDDED:
            facts = json.loads((PRETRAINED / EMBEDDED[name] / "config.json").read_text())
            text = f"ships with the package: {facts['num_hidden_layers']} layers of width {facts['hidden_size']}"
            text += f", context {facts['max_position_embeddings']}"
        lines.append(f"{name:18s} {text}")
    others = "or a hub id, or a local directory with config.json and *.safetensors"
    return "\n".join(lines if chosen else [*lines, others])
