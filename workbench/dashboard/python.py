"""A run as the Python that makes it again."""

from collections.abc import Mapping
from typing import Any

import workbench as wb
from workbench.declare import Declared, describe
from workbench.session import Session, keywords
from workbench.trace import Trace

__all__ = ["call", "of_session", "source"]


def source(value: Any) -> str:
    """A value as Python text; of a declared object only what differs from its defaults."""
    if not isinstance(value, Declared):
        return repr(value)
    plain = type(value)
    parts = []
    for entry in describe(plain):
        given = getattr(value, entry.name)
        if given != entry.default:
            parts.append(f"{entry.name}={source(given)}")
    return f"{_home(plain)}{plain.__name__}({', '.join(parts)})"


def _home(cls: type) -> str:
    return "wb." if cls.__name__ in wb.__all__ else ""


def _imports(value: Any) -> list[str]:
    """Import lines of declared classes that `workbench` itself does not offer."""
    if not isinstance(value, Declared):
        return []
    own = [] if _home(type(value)) else [f"from {type(value).__module__} import {type(value).__name__}"]
    return own + [line for entry in describe(type(value)) for line in _imports(getattr(value, entry.name))]


def _written(prompt: Any) -> str:
    """A prompt as Python text, a line of it on a line."""
    if not isinstance(prompt, str) or "\n" not in prompt:
        return repr(prompt)
    return "\n".join(["(", *(f"    {line!r}" for line in prompt.splitlines(keepends=True)), ")"])


def call(
    model: str, prompt: Any, decoder: Declared | None, settings: Mapping[str, Any], where: Mapping[str, str] = {}
) -> str:
    """The `workbench.decode` call with these settings, as a script that ends with the text in `trace.text`.

    where: further arguments of `workbench.load`.
    """
    known = keywords()
    changed = {name: value for name, value in settings.items() if value != known[name].default and value is not None}
    lines = ["import workbench as wb"]
    lines += sorted({line for part in (decoder, *changed.values()) for line in _imports(part)})
    lines += [
        "",
        f"lm = wb.load({', '.join([repr(model), *(f'{name}={value!r}' for name, value in where.items())])})",
        f"prompt = {_written(prompt)}",
        "trace = wb.decode(",
        "    lm,",
        "    prompt,",
    ]
    lines += [f"    {source(decoder)},"] if decoder is not None else []
    lines += [f"    {name}={source(value)}," for name, value in changed.items()]
    return "\n".join([*lines, ")", "print(trace.text)"])


def of_session(session: Session) -> str:
    """The call that gives a session's text at once: of a branch, what came before it is forced."""
    settings = session.settings
    ignored = not settings.eos_ids and bool(session.lm.eos_ids)
    origin = (session.trace.run.get("parent") or {}).get("round", 0)  # rounds before it were copied
    copied = sum(event["emitted"] for event in Trace(list(session.trace.log)).steps() if event["round"] < origin)
    before = dict(enumerate(session.trace.token_ids[:copied]))
    named = settings.options() | {"ignore_eos": ignored, "force": {**before, **settings.force}}
    return call(str(session.lm.name), session.prompt_again, session.decoder, named, _where(session.lm))


def _where(lm: Any) -> dict[str, str]:
    """What `workbench.load` has to be told for a model to lie where this one does."""
    device, dtype = str(lm.device), str(lm.dtype).removeprefix("torch.")
    where = {"device": device} if device != "cpu" else {}
    return where | ({"dtype": dtype} if where or dtype != "float32" else {})
