"""What visitors hand in: files to be opened, few and small, gone as soon as they were read; and values of controls.

The route takes the place of Gradio's own, which keeps what it is sent for an hour, and the rest of an upload that broke
off for good.
"""

import atexit
import logging
import shutil
import threading
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import strip_invalid_filename_characters
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workbench.dashboard.limits import client_of
from workbench.dashboard.opening import MAX_TRACE
from workbench.errors import BadInput

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a form that is none is the visitor's to hear of
FORM = 64_000  # bytes of a form around it
UNFIT = "the page sent a value that does not fit its control; reload the page"
FILE = "a file: expected one that was just handed in; addresses and paths are not read"
WIDE = (gr.CheckboxGroup, gr.UploadButton)  # controls whose value is more than one text, number or choice
MAX_DEPTH, MAX_INT = 8, 2**53  # of lists and objects within each other; of whole numbers, as browsers have them
MOST, WAITING_S = 4, 60.0  # files of a visitor that were not opened yet, and how long they may wait for it


class Uploads:
    """The files handed in and not yet opened, each in a folder of its own whose name nobody can guess."""

    def __init__(self):
        self._files: dict[str, tuple[str, int, float]] = {}  # folder -> whose, bytes with those to come, and since when
        self._lock = threading.Lock()

    def make_room(self, client: str, size: int) -> Path:
        """A folder for a file of at most `size` bytes. HTTPException where its visitor handed in too much."""
        if size > MAX_TRACE + FORM:
            most = f"{MAX_TRACE // 1_000_000} MB"
            raise HTTPException(413, f"the file is larger than {most}; read it with workbench.Trace.load")
        self.forget(WAITING_S)
        with self._lock:
            mine = [held for whose, held, _ in self._files.values() if whose == client]
            if len(mine) >= MOST or sum(mine) + size > 2 * (MAX_TRACE + FORM):
                raise HTTPException(429, "too many files were handed in and not opened; try again in a minute")
            root = Path(get_upload_folder())
            root.mkdir(parents=True, exist_ok=True)
            folder = mkdtemp(dir=root)
            self._files[folder] = (client, size, time.monotonic())
        return Path(folder)

    def holds(self, path: object) -> bool:
        """Whether that is the path of a file that was handed in."""
        return isinstance(path, str) and str(Path(path).parent) in self._files and Path(path).name != ".."

    def drop(self, path: str | Path) -> None:
        """Delete the file at that path, or the folder made for one, if it was handed in."""
        for folder in {str(path), str(Path(path).parent)} & set(self._files):
            shutil.rmtree(folder, ignore_errors=True)
            self._files.pop(folder, None)

    def forget(self, older: float) -> None:
        """Delete the files that have waited longer than that many seconds."""
        now = time.monotonic()
        for folder in [folder for folder, (*_, at) in list(self._files.items()) if now - at > older]:
            self.drop(folder)


UPLOADS = Uploads()
atexit.register(UPLOADS.forget, -1.0)


async def _upload(request: Request) -> Response:
    """Take one file of a form, under `files`; the answer is a list of its path, as Gradio's page expects."""
    size = request.headers.get("content-length", "")
    try:
        if not size.isdigit():
            raise HTTPException(411, "expected the length of the upload")
        folder = UPLOADS.make_room(client_of(request.scope), int(size))
    except HTTPException as no:
        read = 0
        async for chunk in request.stream():  # a browser hears the answer only after the upload was read, within reason
            read += len(chunk)
            if read > 4 * MAX_TRACE:
                break
        return JSONResponse({"detail": no.detail}, no.status_code)
    try:
        async with request.form(max_files=1, max_fields=0) as form:
            file = form["files"]
            path = folder / (strip_invalid_filename_characters(Path(file.filename or "").name)[-100:] or "run.wb")
            with path.open("wb") as copy:
                shutil.copyfileobj(file.file, copy)
    except (HTTPException, KeyError, AttributeError, AssertionError, OSError, ValueError):
        UPLOADS.drop(folder)
        return JSONResponse({"detail": "expected one file in a form, under the name files"}, 400)
    except BaseException:  # the visitor went away
        UPLOADS.drop(folder)
        raise
    return JSONResponse([str(path)])


ROUTES = [Route("/gradio_api/upload", _upload, methods=["POST"])]


def sound(value: Any, depth: int = 0) -> Any:
    """The value, files without their addresses.

    Raises gr.Error for a file that was not handed in, without a look-up of any kind; and for what no page sends: text
    that is not Unicode, whole numbers beyond a browser's, objects nested deeply.
    """
    large = isinstance(value, int) and abs(value) > MAX_INT
    surrogate = isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value)
    if depth > MAX_DEPTH or large or surrogate:
        raise gr.Error(UNFIT, print_exception=False)
    if isinstance(value, dict) and {"path", "url"} & set(value):
        if not UPLOADS.holds(value.get("path")):
            raise gr.Error(FILE, print_exception=False)
        value.pop("url", None)
    for one in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        sound(one, depth + 1)
    return value


class Blocks(gr.Blocks):
    """Blocks that look at what a page sends; no exception of Gradio's reaches a visitor, but its own refusals do."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> dict[str, Any]:
        sound(getattr(more.get("event_data"), "_data", None))
        return await super().process_api(block_fn, inputs, *rest, **more)

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> Any:
        try:
            for block, value in zip(block_fn.inputs, inputs, strict=False):
                _check(block, value)
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except Exception as error:  # noqa: BLE001  (a value that its control cannot take: the page never sends one)
            raise gr.Error(_line(error), print_exception=False) from None


def taken(block: gr.components.Component, value: Any) -> Any:
    """A control's value as the page sends it, as its handler gets it. Raises BadInput where it does not fit."""
    try:
        _check(block, value)
        return block.preprocess(value)
    except Exception as error:  # noqa: BLE001  (as above)
        raise BadInput(_line(error)) from None


def _check(block: gr.components.Component, value: Any) -> None:
    """Raises gr.Error where the page cannot have sent that."""
    if isinstance(sound(value), list | dict) and not isinstance(block, WIDE):
        raise gr.Error(UNFIT, print_exception=False)


def _line(error: Exception) -> str:
    return " ".join(str(error.message).split())[:500] if isinstance(error, gr.Error) else UNFIT
