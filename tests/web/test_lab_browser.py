"""JupyterLab in a real Chromium: the widget lives in its cell, and no request leaves the machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from playwright.sync_api import TimeoutError

from tests.conftest import PATIENCE
from tests.web.pages import TOKEN, at

pytestmark = pytest.mark.browser
STARTED = "n => document.querySelectorAll('.jp-CodeCell')[n].querySelector('.jp-InputPrompt').innerText !== '[ ]:'"
CELLS = (
    "import gc, weakref\n"
    "import workbench as wb\n"
    "lm = wb.load('embedded')\n"
    "session = wb.Session(lm, 'def fibonacci(n):', max_new_tokens=400, ignore_eos=True)\n"
    "widget = session.widget()\n"
    "widget",
    "kept = [weakref.ref(one) for one in (session, session.trace, session.state.runners['target'].store)]\n"
    "print('alive:', sum(one() is not None for one in kept), 'of', len(kept))\n"
    "widget.close()\n"
    "del session\n"
    "gc.collect()\n"
    "print('after closing:', sum(one() is not None for one in kept), 'of', len(kept))",
)


def notebook() -> dict:
    """The cells as a notebook that was never run."""
    blank = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**blank, "id": f"cell-{place}", "source": source} for place, source in enumerate(CELLS)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


@pytest.fixture
def lab(tmp_path):
    """`workbench lab` on a folder with one more notebook; gives the address of that notebook."""
    (tmp_path / "live.ipynb").write_text(json.dumps(notebook()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "workbench", "lab", "--no-browser", f"--port={port}", f"--folder={tmp_path}"]
    said = (tmp_path / "said.txt").open("w")
    own = {"JUPYTER_TOKEN": "token", "JUPYTER_CONFIG_DIR": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=os.environ | own, stdout=said, stderr=said, start_new_session=True)
    root = f"http://127.0.0.1:{port}/"
    try:
        wait_for(root, tmp_path / "said.txt")
        yield SimpleNamespace(root=root, file=tmp_path / "live.ipynb", page=f"{root}lab/tree/live.ipynb?token=token")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
        said.close()


def wait_for(root: str, said) -> None:
    end = time.monotonic() + 120  # a server that is still starting on a busy machine
    while True:
        try:
            return urllib.request.urlopen(f"{root}api", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < end, said.read_text()[-2000:]
            time.sleep(0.1)


def run_cell(page, place: int) -> None:
    """Run a cell; JupyterLab drops what is run before its kernel is connected."""
    cell = page.locator(".jp-CodeCell").nth(place)
    for _ in range(20):
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        try:
            return page.wait_for_function(STARTED, arg=place, timeout=5_000)
        except TimeoutError:
            continue
    raise AssertionError("the cell was never run")


def holds(page, condition: str, value=None) -> None:
    page.wait_for_function(condition, arg=value, timeout=PATIENCE)


def test_the_widget_lives_in_its_cell_is_driven_by_keyboard_and_is_freed(chromium, lab):
    context = chromium.new_context(viewport={"width": 1280, "height": 1100})
    context.set_default_timeout(PATIENCE)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda channel: asked.append(channel.url.replace("ws://", "http://")))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(lab.page)
    page.wait_for_selector(".jp-StatusBar-Widget :text('| Idle')", timeout=PATIENCE)
    run_cell(page, 0)
    page.wait_for_selector(".jp-OutputArea .wb-view .wb-transport", timeout=PATIENCE)
    controls = page.get_by_role("group", name="step through the run", exact=True)

    def press(name: str) -> None:
        """A button by keyboard alone; JupyterLab's own shortcuts for the key must stay quiet."""
        controls.get_by_role("button", name=name).press("Enter")

    count = f"document.querySelectorAll('{TOKEN}').length"
    place = "document.querySelector('.wb-place').innerText"
    for made in (1, 2, 3):
        press("one step on")
        holds(page, f"made => {count} === made", made)
    assert page.locator(".jp-Notebook.jp-mod-editMode").count() == 0  # Enter did not reach the notebook
    press("one step back")
    assert at(page) == 1 and page.evaluate(place) == "token 1 of 3 · round 2"
    press("to the head of the run")
    assert at(page) == 2 and page.inner_text(".wb-play").strip() == "Decode"

    page.evaluate(
        "() => { window.seen = []; const box = document.querySelector('.wb-tokens');"
        " const look = () => window.seen.push([box.querySelectorAll('.wb-token').length,"
        " document.querySelector('.wb-play').innerText.trim()]);"
        " new MutationObserver(look).observe(box.firstElementChild, {childList: true}); }"
    )
    press("decode on from here")
    holds(page, "() => new Set(window.seen.map(([n]) => n)).size >= 4")
    press("pause after this round")
    holds(page, "() => ['Decode', 'Replay'].includes(document.querySelector('.wb-play').innerText.trim())")
    seen = page.evaluate("window.seen")
    sizes = sorted({size for size, _ in seen})
    assert [size for size, _ in seen] == sorted(size for size, _ in seen)
    assert 3 <= sizes[0] < sizes[1] < sizes[2] < sizes[3] < 400  # it grew, update by update, until the pause
    assert "Pause" in {said for _, said in seen} and page.evaluate(count) >= sizes[-1]

    box = page.locator(".wb-tokens")
    box.press("Home")
    assert at(page) == 0
    box.press("ArrowRight")
    assert at(page) == 1
    box.press("ArrowRight")
    assert at(page) == 2 and "token 2 · position" in page.inner_text(".wb-inspector")
    assert page.evaluate("document.activeElement.matches('.wb-tokens')")  # the focus stayed in the widget
    box.press("Enter")  # branch here
    assert page.evaluate("document.activeElement.matches('.wb-branch input')")
    page.keyboard.type(" return")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-chip >> nth=1", timeout=PATIENCE)
    assert page.locator(".wb-chip").all_inner_texts() == ["A", "B"] and page.evaluate(count) == 3
    page.locator(".wb-chip").first.press("Enter")
    holds(page, f"made => {count} >= made", sizes[-1])
    view = page.locator(".wb-view").bounding_box()
    assert abs(view["height"] - 640) < 2 or view["width"] < 900
    assert page.locator(".jp-Notebook.jp-mod-editMode").count() == 0
    page.keyboard.press("Control+s")  # a chord is still JupyterLab's
    page.wait_for_selector(".jp-mod-dirty", state="detached", timeout=PATIENCE)
    assert "widget-state" not in lab.file.read_text() and "drafted and kept" in lab.file.read_text()

    run_cell(page, 1)
    holds(page, "() => document.querySelector('.jp-Notebook').innerText.includes('after closing: 0 of 3')")
    assert "alive: 3 of 3" in page.inner_text(".jp-Notebook")
    holds(page, "() => !document.querySelector('.wb-view')")
    context.close()
    strange = [url for url in asked if not url.startswith((lab.root, "blob:", "data:"))]
    assert not strange and not errors and len(asked) > 20
