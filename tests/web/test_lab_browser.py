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

pytestmark = pytest.mark.browser
TOKEN = ".wb-token[role=option]"
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
    page.wait_for_selector(".jp-OutputArea .wb-view .wb-decode", timeout=PATIENCE)
    decode = page.get_by_role("group", name="decode", exact=True)

    def press(name: str) -> None:
        """A button by keyboard alone; JupyterLab's own shortcuts for the key must stay quiet."""
        decode.get_by_role("button", name=name).press("Enter")

    count = f"document.querySelectorAll('{TOKEN}').length"
    for made in (1, 2, 3):
        press("decode one round")
        holds(page, f"made => {count} === made", made)
    assert page.locator(".jp-Notebook.jp-mod-editMode").count() == 0  # Enter did not reach the notebook
    press("take the run one round back")
    holds(page, "() => document.querySelector('.wb-status').innerText === 'token 2 of 3 recorded, round 2'")
    assert page.locator(f"{TOKEN}.wb-ahead").count() == 1

    page.evaluate(
        "() => { window.seen = []; const box = document.querySelector('.wb-tokens');"
        " const look = () => window.seen.push([box.querySelectorAll('.wb-token').length,"
        " document.querySelector('.wb-status').innerText]);"
        " new MutationObserver(look).observe(box, {childList: true}); }"
    )
    press("decode to the end")
    holds(page, "() => window.seen.length >= 4")
    press("pause after this round")
    holds(page, "() => document.querySelector('.wb-status').innerText.startsWith('token ')")
    seen = page.evaluate("window.seen")
    assert 3 < seen[0][0] < seen[1][0] < seen[2][0] < seen[3][0] < 400  # it grew, update by update, until the pause
    assert seen[1][1] == "decoding …" and page.evaluate(count) >= seen[-1][0]

    scrub, at = page.locator(".wb-scrub"), f"document.querySelector('{TOKEN}[aria-selected=true]').dataset.index"
    scrub.press("Home")
    assert page.evaluate(at) == "0"
    scrub.press("ArrowRight")
    assert page.evaluate(at) == "1"
    page.locator(f"{TOKEN}[tabindex='0']").press("ArrowRight")
    assert page.evaluate(at) == "2" and "token 2 at position" in page.inner_text(".wb-inspector")
    assert page.evaluate(f"document.activeElement.matches('{TOKEN}')")  # the focus stayed in the widget
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
