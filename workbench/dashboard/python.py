"""A run as the Python that makes it again."""

from collections.abc import Mapping
from typing import Any

import workbench as wb
from workbench.declare import Declared, describe, from_dict
from workbench.errors import BadInput
from workbench.session import Session, keywords
from workbench.trace import Trace, tables


def source(value: Any) -> str:
    """A value as Python text; of a declared object only what differs from its defaults."""
    if not isinstance(value, Declared):
        return repr(value)
    given = [(entry, getattr(value, entry.name)) for entry in describe(type(value))]
    parts = [f"{entry.name}={source(part)}" for entry, part in given if part != entry.default]
    name = type(value).__name__
    return f"{'wb.' if name in wb.__all__ else ''}{name}({', '.join(parts)})"


def _imports(value: Any) -> list[str]:
    """Import lines of declared classes that `workbench` itself does not offer."""
    if not isinstance(value, Declared):
        return []
    name, home = type(value).__name__, type(value).__module__
    own = [] if name in wb.__all__ else [f"from {home} import {name}"]
    return own + [line for entry in describe(type(value)) for line in _imports(getattr(value, entry.name))]


def call(
    model: str, prompt: Any, decoder: Declared | None, settings: Mapping[str, Any], where: Mapping[str, str] = {}
) -> str:
    """The `workbench.decode` call with these settings, as a script that ends with the text in `trace.text`.

    where: further arguments of `workbench.load`.
    """
    known = keywords()
    changed = {name: value for name, value in settings.items() if value != known[name].default and value is not None}
    imports = sorted({line for part in (decoder, *changed.values()) for line in _imports(part)})
    loaded = ", ".join([repr(model), *(f"{name}={value!r}" for name, value in where.items())])
    written = [repr(prompt)]
    if isinstance(prompt, str) and "\n" in prompt:
        written = ["(", *(f"    {line!r}" for line in prompt.splitlines(keepends=True)), ")"]
    given = ["lm", "prompt", *([] if decoder is None else [source(decoder)])]
    given += [f"{name}={source(value)}" for name, value in changed.items()]
    lines = ["import workbench as wb", *imports, "", f"lm = wb.load({loaded})", "prompt = " + "\n".join(written)]
    return "\n".join([*lines, "trace = wb.decode(", *(f"    {one}," for one in given), ")", "print(trace.text)"])


def asked(run: Mapping[str, Any]) -> tuple[Declared | None, dict[str, Any]]:
    """Decoder and settings of a recorded run. Raises BadInput where it names what is not here."""
    members = ("decoder", "cache", "constraint")
    decoder, *held = (from_dict(run[name]) if run.get(name) is not None else None for name in members)
    said = {**run, **(run.get("sampling") or {}), **dict(zip(members[1:], held, strict=True))}
    return decoder, {"cache": None} | {name: said[name] for name in keywords() if said.get(name) not in (None, [])}


def of_run(trace: Trace) -> str:
    """The call that gives the text of an opened trace, as far as its prompt is text: of a branch, what came before it
    is forced. A line that says why, where the trace names what is not here, or is damaged."""
    run = trace.run
    try:
        decoder, settings = asked(run)
        settings["force"] = {int(place): token for place, token in (run.get("forced") or {}).items()}
        settings["force"] |= dict(enumerate(trace.token_ids[: (run.get("parent") or {}).get("index", 0)]))
    except (BadInput, TypeError, ValueError, AttributeError) as why:
        return f"# {' '.join(str(why).split())}"
    text = run.get("prompt_text")
    prompt = list(run.get("prompt_ids") or ()) if not text or "\ufffd" in text else text
    return call(str(tables.model(run, "target").get("name") or "embedded"), prompt, decoder, settings)


def of_session(session: Session) -> str:
    """The call that gives a session's text at once: of a branch, what came before it is forced."""
    settings, lm, trace = session.settings, session.lm, session.trace
    origin = (trace.run.get("parent") or {}).get("round", 0)  # rounds before it were copied
    before = dict(enumerate(trace.token_ids[: trace.index.start(min(origin, session.rounds))]))
    ignored = not settings.eos_ids and bool(lm.eos_ids)
    named = settings.options() | {"ignore_eos": ignored, "force": {**before, **settings.force}}
    device, dtype = str(lm.device), str(lm.dtype).removeprefix("torch.")
    where = {"device": device} if device != "cpu" else {}
    where |= {"dtype": dtype} if where or dtype != "float32" else {}
    return call(str(lm.name), session.prompt_again, session.decoder, named, where)
