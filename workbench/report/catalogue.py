"""What there is to choose from, as text: members of every family, their parameters, the models."""

import inspect
import json
from typing import Any

from workbench import declare, members
from workbench.errors import BadInput

FAMILIES = {several: family for family, several in (members.FAMILIES | members.FUNCTIONS).items()}


def listing(kind: str) -> str:
    """The names of one kind, a line each; those of installed packages included, and why a plug-in is left out."""
    if kind in OTHERS:
        return OTHERS[kind]()
    family = FAMILIES[kind]
    docs = {name: (declare.get(family, name).__doc__ or "").strip() for name in declare.names(family)}
    lines = [f"{name:18s} " + doc.split("\n")[0] for name, doc in docs.items()]
    for name, reason in declare.broken().items():
        head, _, member = name.partition(".")
        if head == family or head not in FAMILIES.values():  # one that names no family stands in every list
            lines.append(f"{member or name:18s} a plug-in that is left out: {reason}")
    return "\n".join(lines)


def about(kind: str, name: str) -> str:
    """One member: what it does, and its parameters with bounds and defaults. Raises BadInput where it is unknown."""
    if kind in OTHERS:
        return OTHERS[kind](name)
    member = declare.get(FAMILIES[kind], name)
    if FAMILIES[kind] in members.FUNCTIONS:
        parameters = [f"  {name}{inspect.signature(member)}"]
    else:
        parameters = [_parameter(entry) for entry in declare.describe(member)] or ["  no parameters"]
    return "\n".join([f"{name}\n", inspect.cleandoc(member.__doc__ or ""), "", *parameters])


def _parameter(entry: declare.Field) -> str:
    return f"  {entry.name:14s} {entry.help}\n  {'':14s} {entry.facts}"


def _settings(chosen: str | None = None) -> str:
    """What a run is asked to do beside its decoder: the keywords of `decode`, `Session` and the command line."""
    from workbench.engine.settings import keywords

    known = keywords()
    if chosen is not None and chosen not in known:
        raise BadInput(f"no setting is called {chosen!r}; known: {', '.join(known)}")
    return "\n".join(_parameter(entry) for name, entry in known.items() if chosen in (None, name))


def _refusals(chosen: str | None = None) -> str:
    """What cannot go together and why: a line per drafter and shape, and per verifier; `chosen`: one member's alone."""
    from workbench.speculation.refusals import refusals

    lines = [
        f"{first:14s} {second:20s} {reason}" for first, second, reason in refusals() if chosen in (None, first, second)
    ]
    return "\n".join(lines) or f"nothing is refused with {chosen!r}"


def fetch(name: str, progress: Any = None) -> str:
    """Fetch a model that is offered; the folder where it lies."""
    from workbench.models.offers import get

    return str(get(name, progress))


def _models(chosen: str | None = None) -> str:
    from workbench.models.loading import EMBEDDED, OFFERS, PRETRAINED, known_models, present

    known = list(dict.fromkeys([*known_models(), *OFFERS]))
    if chosen is not None and chosen not in known:
        raise BadInput(f"no model is called {chosen!r}; known: {', '.join(known)}, hub ids, local directories")
    lines = []
    for name in [chosen] if chosen else known:
        text = "registered in this process"
        if name in EMBEDDED:
            facts = json.loads((PRETRAINED / EMBEDDED[name] / "config.json").read_text())
            text = f"ships with the package: {facts['num_hidden_layers']} layers of width {facts['hidden_size']}"
            text += f", context {facts['max_position_embeddings']}"
        elif name in OFFERS:
            offer = OFFERS[name]
            here = "here" if present(name) else f"fetch it with: workbench models get {name} ({offer.size} MB)"
            text = f"{offer.about}; {offer.license}; {here}"
        lines.append(f"{name:18s} {text}")
    others = "or a hub id, a local directory with config.json and *.safetensors, or a GGUF file"
    return "\n".join(lines if chosen else [*lines, others])


OTHERS = {"settings": _settings, "models": _models, "refusals": _refusals}
KINDS = (*FAMILIES, *OTHERS)
