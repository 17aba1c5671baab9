"""Files that visitors hand in to be opened: one at a time, few and small, gone as soon as they were read.

The route takes the place of Gradio's own, which keeps what it is sent for an hour, and the rest of an upload that broke
off for good.
"""

import atexit
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from gradio.utils import get_upload_folder
from gradio_client.utils import strip_invalid_filename_characters
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workbench.dashboard.opening import MAX_TRACE
from workbench.dashboard.pages import Refused, client_of

__all__ = ["MAX_TRACE", "ROUTES", "UPLOADS", "Uploads"]

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a form that is none is the visitor's to hear of
FORM = 64_000  # bytes of a form around it
MOST, WAITING_S = 4, 60.0  # files of a visitor that were not opened yet, and how long they may wait for it


@dataclass
class Upload:
    """client: whose it is; size: bytes, those that are still to come included."""

    client: str
    size: int
    at: float = field(default_factory=time.monotonic)


class Uploads:
    """The files handed in and not yet opened, each in a folder of its own whose name nobody can guess."""

    def __init__(self):
        self._files: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def make_room(self, client: str, size: int) -> Path:
        """A folder for a file of at most `size` bytes. Raises Refused where its visitor has handed in too much."""
        if size > MAX_TRACE + FORM:
            raise Refused(
                413, f"the file is larger than {MAX_TRACE // 1_000_000} MB; read it with workbench.Trace.load"
            )
        self.forget(WAITING_S)
        with self._lock:
            mine = [one.size for one in self._files.values() if one.client == client]
            if len(mine) >= MOST or sum(mine) + size > 2 * (MAX_TRACE + FORM):
                raise Refused(429, "too many files were handed in and not opened; try again in a minute")
            root = Path(get_upload_folder())
            root.mkdir(parents=True, exist_ok=True)
            folder = mkdtemp(dir=root)
            self._files[folder] = Upload(client, size)
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
        for folder in [folder for folder, one in list(self._files.items()) if now - one.at > older]:
            self.drop(folder)


UPLOADS = Uploads()
atexit.register(UPLOADS.forget, -1.0)


async def _upload(request: Request) -> Response:
    """Take one file of a form, under `files`; the answer is a list of its path, as Gradio's page expects."""
    size = request.headers.get("content-length", "")
    try:
        if not size.isdigit():
            raise Refused(411, "expected the length of the upload")
        folder = UPLOADS.make_room(client_of(request.scope), int(size))
    except Refused as no:
        return await _refused(request, no)
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


async def _refused(request: Request, no: Refused) -> Response:
    """The answer to an upload that is not taken; a browser hears it only after it was read, within reason."""
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > 4 * MAX_TRACE:
            break
    return JSONResponse({"detail": no.why}, no.status)


ROUTES = [Route("/gradio_api/upload", _upload, methods=["POST"])]
