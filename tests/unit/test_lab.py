"""The JupyterLab launcher: what it runs, what it copies, and that it leaves a user's files alone."""

import json
import subprocess
from pathlib import Path

import pytest

from workbench import lab
from workbench.errors import BadInput


@pytest.fixture
def ran(monkeypatch):
    """Runs no JupyterLab; notes the command, and what its settings folder held meanwhile."""
    seen = {}

    def run(command, env, check):
        files = [path for path in Path(env["JUPYTERLAB_SETTINGS_DIR"]).rglob("*") if path.is_file()]
        seen.update(command=command, settings={path.name: json.loads(path.read_text()) for path in files})
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(lab.subprocess, "run", run)
    return seen


def test_runs_on_this_machine_only_and_opens_the_first_tutorial(ran, tmp_path):
    assert lab.open_lab(tmp_path, ["--no-browser"]) == 3
    assert ran["command"][1:3] == ["-m", "jupyterlab"] and ran["command"][-1] == "--no-browser"
    assert f"--ServerApp.root_dir={tmp_path}" in ran["command"]
    assert "--ServerApp.ip=127.0.0.1" in ran["command"]
    assert "--LabApp.default_url=/lab/tree/01-first-steps.ipynb" in ran["command"]
    assert ran["settings"]["notification.jupyterlab-settings"]["fetchNews"] == "false"


def test_copies_what_is_missing_and_overwrites_nothing(ran, tmp_path):
    (tmp_path / "01-first-steps.ipynb").write_text("mine")
    lab.open_lab(tmp_path)
    assert (tmp_path / "01-first-steps.ipynb").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in lab.notebooks().glob("*.ipynb")}


def test_an_installed_package_works_in_a_folder_here(ran, tmp_path, monkeypatch):
    inside = tmp_path / "site-packages" / "workbench" / "notebooks"
    inside.mkdir(parents=True)
    (inside / "01-first-steps.ipynb").write_text("{}")
    monkeypatch.setattr(lab, "__file__", str(inside.parent / "lab.py"))
    monkeypatch.chdir(tmp_path)
    lab.open_lab()
    assert (tmp_path / "workbench-notebooks" / "01-first-steps.ipynb").exists()


def test_missing_notebooks_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "workbench" / "lab.py"))
    with pytest.raises(BadInput, match="notebooks are missing"):
        lab.notebooks()
