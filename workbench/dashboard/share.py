"""Import and export: traces, capsules and timelines as files, the run as Python."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from workbench.cursor import Replay
from workbench.dashboard import python
from workbench.dashboard import screen as page
from workbench.dashboard.html import button, inert
from workbench.dashboard.opening import open_file
from workbench.dashboard.uploads import UPLOADS
from workbench.dashboard.visits import Visit, guarded
from workbench.errors import BadInput
from workbench.report.capsule import capsule_of
from workbench.trace import perfetto, storage
from workbench.web import script

ENDINGS = (".wb", ".html")  # of what may be opened
KINDS = {  # of files: the button, the ending, the type
    "save": ("Save the trace", ".wb", "application/x-ndjson"),
    "capsule": ("Save a capsule (one offline page)", ".html", "text/html"),
    "perfetto": ("Save the timeline (Perfetto)", ".json", "application/json"),
}
DOWNLOAD = script("download.js")
IN_BROWSER = {  # what the page does by itself
    "link": "() => navigator.clipboard?.writeText(location.href) ?? prompt('the link', location.href)",
    "picture": "() => dispatchEvent(new CustomEvent('workbench-picture'))",
}


def panel() -> None:
    """Buttons that make files, the one that opens them, and the run as Python."""
    with gr.Row(elem_id="files"):
        for name, (label, *_) in KINDS.items():
            button(name, label, 140, interactive=False)
        button("picture", "Save the timeline as a picture (PNG)", 140)
        button("link", "Copy the link to this place", 140)
        small = {"size": "sm", "min_width": 140, "elem_id": "open"}
        gr.UploadButton("Open a trace or a capsule", file_types=list(ENDINGS), **small)
    code = {"lines": 8, "max_lines": 24, "buttons": ["copy"], "interactive": False, "elem_id": "code"}
    gr.Textbox("", label="the run looked at, as Python", **code)
    button("copy", "The settings as they are now, as Python", None)


def as_file(name: str, text: str, kind: str) -> str:
    """A file for the browser to keep, as `DOWNLOAD` reads it."""
    return json.dumps({"name": name, "text": text, "type": kind})


@guarded
def download(visit: Visit, kind: str) -> tuple[str, str]:
    """The run looked at as a file for the browser to keep; and the status line."""
    _, ending, mime = KINDS[kind]
    trace = visit.branch.trace
    if kind == "capsule":
        text = capsule_of(trace, text_of=visit.branch.reader)
    else:
        events = trace.log if kind == "save" else [perfetto.events(trace)]
        text = b"".join(map(storage.encode, events)).decode()
    name = f"{trace.id or 'run'}{ending}"
    visit.message = f"Saved {name}: {len(trace.token_ids)} tokens."
    return as_file(name, text, mime), inert(visit.message)


@guarded
def open_upload(visit: Visit, file: Any) -> tuple:
    """Show the file that was handed in, given as Gradio describes one, and delete it."""
    path = file.get("path") if isinstance(file, dict) else None
    if not path or not path.lower().endswith(ENDINGS):
        raise BadInput("choose a trace file such as run.wb, or a capsule such as run.html")
    try:
        return open_trace(visit, path)
    finally:
        UPLOADS.drop(path)


@guarded
def open_trace(visit: Visit, path: str) -> tuple:
    """Show a trace file or a capsule; no model is needed."""
    name = Path(path).name
    trace = open_file(Path(path))
    replay = Replay(trace)
    replay.jump(replay.length, replay.rounds)
    visit.add(name, replay)
    lost = f" Dropped: {'; '.join(trace.dropped)}." if trace.dropped else ""
    page.say(visit, f"Opened {name}: {replay.length} tokens.{lost}")
    return page.panel(visit)


@guarded
def copy(visit: Visit, filled: str) -> str:
    """The `workbench.decode` call with the form's settings."""
    wanted = visit.form.read(filled)
    return python.call(wanted.model, wanted.prompt, wanted.decoder, wanted.settings, wanted.where)
