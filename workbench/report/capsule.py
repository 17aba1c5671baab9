"""A capsule: one offline HTML file that shows a run to anyone, and holds the whole trace.

The page carries the view of the trace (`workbench.web`), its data, and the trace itself, gzipped; a content security
policy lets nothing in but the one script and the one stylesheet, each by its hash. Texts of a model or a prompt are
escaped where Python writes them and set as text where the script does.
"""

import base64
import gzip
import hashlib
import html
import os
from pathlib import Path
from string import Template
from typing import Any

from workbench import web
from workbench.errors import BadTrace
from workbench.report.headline import headline, run_line
from workbench.trace import Trace, storage
from workbench.trace.files import target, write_whole
from workbench.trace.forms import writable

POLICY = "default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'; form-action 'none'"


def capsule_of(trace: Trace, title: str | None = None, note: str = "", text_of: web.data.Reader | None = None) -> str:
    """The page as text.

    title: heading, by default decoder and start of the prompt; note: what to look for, said below it; text_of: as for
    `web.payload`.
    """
    run = trace.run
    start = " ".join(trace.prompt.split())
    start = start if len(start) <= 60 else start[:59] + "…"
    view = {**web.payload(trace, text_of=text_of), **run_line(trace)}
    began = str(run.get("time") or "")[:16].replace("T", " ")
    page = Template((web.FOLDER / "capsule.html").read_text(encoding="utf-8")).substitute(
        policy=POLICY,
        title=_inert(title or f"{(run.get('decoder') or {}).get('name') or 'run'}: {start}"),
        about=_inert(f"{len(trace.token_ids)} tokens, trace {trace.id} {began}"),
        note=f'<p class="note">{_inert(note)}</p>' if note else "",
        plain=web.plain(trace),
        sections="".join(_section(name, facts) for name, facts in _sections(trace).items()),
        data=base64.b64encode(gzip.compress(web.to_json(view).encode(), mtime=0)).decode(),
        trace=base64.b64encode(storage.packed(trace.log)).decode(),
        palette=f":root {{ {web.variables()} }}",
        view=web.css(),
        module=web.module(export=False),
    )
    tags = {"style": "<style>", "script": '<script type="module">'}
    hashes = {name: _hash(page.partition(tag)[2].partition(f"</{name}>")[0]) for name, tag in tags.items()}
    return page.replace(POLICY, POLICY.format(**hashes), 1)


def write_capsule(trace: Trace, path: str | Path, **options: Any) -> Path:
    """Write the page, all or nothing; `options` are those of `capsule_of`. BadInput where that is impossible."""
    target(path)  # refused before the page is made
    write_whole(path, capsule_of(trace, **options).encode())
    return Path(os.fsdecode(path))


def open_capsule(path: str | Path) -> Trace:
    """The trace inside a capsule; `Trace.load` does the same for capsules and trace files alike.

    Raises BadInput where there is no such file, BadTrace where it is no capsule or is damaged.
    """
    if not storage.is_capsule(path):
        raise BadTrace(f"{path} is not a capsule: expected an HTML file that trace.capsule wrote")
    return Trace.load(path)


def _sections(trace: Trace) -> dict[str, dict[str, Any]]:
    """What produced the run: settings, models, provenance."""
    run = trace.run
    decoder = run.get("decoder") or {}
    settings = {"decoder": decoder.get("name"), **_flat(decoder.get("settings") or {})}
    settings |= {name: value for name, value in (run.get("sampling") or {}).items() if value not in (None, [])}
    settings |= _flat({name: run.get(name) for name in ("cache", "constraint")})
    settings |= {name: run.get(name) for name in ("seed", "sample", "max_new_tokens", "max_time", "stop", "level")}
    settings |= {"forced": ", ".join(f"token {at} to id {token}" for at, token in (run.get("forced") or {}).items())}
    figures = {name: text for name, text in headline(trace).items() if name not in ("decoder", "guarantee")}
    models = {f"Model: {model.get('role')}": model for model in run.get("models") or ()}
    provenance = {"trace": trace.id} | {name: run.get(name) for name in ("time", "device", "guarantee")}
    provenance |= {"verified by": ", ".join(run.get("verified") or ())} | (run.get("versions") or {})
    if run.get("parent"):
        provenance["branch of"] = ", ".join(f"{name} {value}" for name, value in run["parent"].items())
    if trace.dropped:
        provenance["dropped"] = "; ".join(trace.dropped)
    return {"Settings": settings, "Figures": figures, **models, "Provenance": provenance}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested declarations as dotted names: {"drafter": "draft_model", "drafter.model": …}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "name" in value:
            flat |= {f"{prefix}{name}": value["name"], **_flat(value.get("settings") or {}, f"{prefix}{name}.")}
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _section(title: str, facts: dict[str, Any]) -> str:
    known = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    rows = (f'<tr><th scope="row">{_inert(name)}</th><td>{_inert(value)}</td></tr>' for name, value in known.items())
    return f"<section><h2>{_inert(title)}</h2><table>{''.join(rows)}</table></section>" if known else ""


def _inert(value: Any) -> str:
    return writable(html.escape(str(value)))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
