"""JupyterLab on the tutorial notebooks: one command, nothing fetched from a network, no settings of yours touched."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from workbench.errors import BadInput, Unsupported
from workbench.values import bounded

PACKAGE = Path(__file__).parent.parent
NOTIFICATIONS = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="copy the notebooks here first; nothing is overwritten")
    parser.add_argument("--port", type=int, default=8888, help="default 8888, or the next one that is free")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser")


def notebooks(folder: Path | None = None) -> Path:
    """The folder to open: a checkout's own notebooks, else copies in `folder` (default: ./workbench-notebooks).

    Raises BadInput where the folder cannot be written, Unsupported where the installation has no notebooks.
    """
    checkout, bundled = PACKAGE.parent / "notebooks", PACKAGE / "notebooks"
    source = next((place for place in (bundled, checkout) if any(place.glob("*.ipynb"))), None)
    if source is None:
        raise Unsupported("this installation has no notebooks; install decoding-workbench again, or open a checkout")
    if folder is None and source == checkout:
        return checkout
    folder = folder or Path("workbench-notebooks")
    try:
        for file in (*source.glob("*.ipynb"), source / "README.md", *source.glob("runs/*.wb")):
            place = folder / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                shutil.copyfile(file, place)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}; name another --folder") from None
    return folder


def command(folder: Path, port: int, browser: bool) -> list[str]:
    """The command that opens JupyterLab on the first notebook of a folder, for this machine only."""
    first = min(place.name for place in folder.glob("*.ipynb"))
    options = {
        "ServerApp.root_dir": folder.resolve(),
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.open_browser": browser,
        "ServerApp.allow_root": hasattr(os, "geteuid") and os.geteuid() == 0,  # as in many containers
        "LabApp.default_url": f"/lab/tree/{first}",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def start(folder: Path | None = None, port: int = 8888, browser: bool = True) -> int:
    """Run JupyterLab until it is stopped; returns its exit code."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise Unsupported("jupyterlab is not installed; install it with: pip install jupyterlab")
    bounded("--port", port, 1, 65535, "a number")
    folder = notebooks(folder)
    with tempfile.TemporaryDirectory(prefix="workbench-lab-") as settings:
        quiet = Path(settings) / NOTIFICATIONS
        quiet.parent.mkdir(parents=True)
        quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        process = subprocess.Popen(
            command(folder, port, browser), env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": settings}
        )
        while True:  # Ctrl-C reaches JupyterLab too, which asks before it stops
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def lab(args: argparse.Namespace) -> int:
    return start(folder=args.folder, port=args.port, browser=args.browser)


if __name__ == "__main__":
    from workbench.cli import main

    sys.exit(main(["lab", *sys.argv[1:]]))
