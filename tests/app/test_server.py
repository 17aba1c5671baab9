"""What the served app lets in: this machine's own browser, small files, nothing by script."""

import json
import socket
import urllib.error
import urllib.request

import pytest

from workbench.cli import main


def ask(url: str, data: bytes | None = None, **headers: str) -> int:
    """The status of a request."""
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_is_served_to_this_machine_under_its_own_name_only(served):
    assert ask(served) == ask(f"{served}view.js") == 200
    assert ask(served, Host="evil.example") == 400  # what a rebound name would send


def test_files_of_the_machine_and_monitoring_are_not_served(served):
    assert ask(f"{served}gradio_api/file=/etc/hostname") in (403, 404)
    assert ask(f"{served}gradio_api/monitoring") in (403, 404)
    assert ask(f"{served}monitoring") in (403, 404)


def test_no_event_is_offered_to_scripts(served):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{served}gradio_api/info") as reply:
        assert json.load(reply)["named_endpoints"] == {}


def test_large_uploads_are_refused(served):
    edge = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.wb"\r\n\r\n'
    body = edge + b"x" * 17_000_000 + b"\r\n--edge--\r\n"
    assert ask(f"{served}gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=edge"}) == 413


def test_a_taken_port_is_refused_in_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port), "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"workbench: cannot listen on 127.0.0.1:{port}") and error.count("\n") == 1


@pytest.mark.browser
def test_a_closed_page_frees_its_runs_once_its_tab_does_not_come_back(open_page):
    import time

    from workbench.dashboard.visits import VISITS, forget_left

    before = set(VISITS)
    page = open_page()
    page.click(".wb-start")
    page.wait_for_selector(".wb-runs .wb-chip >> nth=1", timeout=60_000)
    mine = {name: visit for name, visit in VISITS.items() if name not in before and visit.branches}
    assert mine
    page.context.close()
    deadline = time.monotonic() + 60
    while mine.keys() & set(VISITS) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not mine.keys() & set(VISITS) and all(visit.branches for visit in mine.values())
    forget_left(older=-1, decoding=-1)
    assert not any(visit.branches for visit in mine.values())
