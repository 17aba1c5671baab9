"""JupyterLab on the tutorial notebooks, on this machine only: no news, no update checks, no extension downloads.

python -m workbench.lab [options of JupyterLab]
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import BadInput

__all__ = ["notebooks", "open_lab"]

_SETTINGS = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"


def notebooks() -> Path:
    """The folder of the tutorials: inside an installed package, beside it in a clone of the repository."""
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise BadInput("the tutorial notebooks are missing; install decoding-workbench again")


def open_lab(folder: Path | str | None = None, arguments: Sequence[str] = ()) -> int:
    """Run JupyterLab until it is closed; returns its exit status.

    folder: where to work. In a clone the default is its own `notebooks/`; otherwise `workbench-notebooks` here. The
        tutorials that are not there yet are copied into it; nothing is ever overwritten.
    arguments: further options for JupyterLab, such as `--no-browser` or `--port=8889`.
    """
    source = notebooks()
    in_clone = source.parent != Path(__file__).parent
    folder = Path(folder) if folder else source if in_clone else Path("workbench-notebooks")
    folder.mkdir(parents=True, exist_ok=True)
    tutorials = sorted(source.glob("*.ipynb"))
    for tutorial in tutorials:
        if not (folder / tutorial.name).exists():
            shutil.copy(tutorial, folder)
    with tempfile.TemporaryDirectory(prefix="workbench-lab-") as settings:
        quiet = Path(settings, _SETTINGS)
        quiet.parent.mkdir(parents=True)
        quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "jupyterlab"),
            f"--ServerApp.root_dir={folder.resolve()}",
            "--ServerApp.ip=127.0.0.1",
            f"--LabApp.default_url=/lab/tree/{tutorials[0].name}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.extension_manager=readonly",
            *arguments,
        ]
        try:
            return subprocess.run(
                command, env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": settings}, check=False
            ).returncode
        except KeyboardInterrupt:  # JupyterLab got it too, and has asked whether to stop
            return 0


if __name__ == "__main__":
    sys.exit(open_lab(arguments=sys.argv[1:]))
