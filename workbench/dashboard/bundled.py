"""Recorded runs that ship with the package, so that the app opens on one with no model and no wait.

    python -m workbench.dashboard.bundled      # decodes them anew
"""

from functools import cache
from pathlib import Path

import workbench as wb
from workbench.dashboard.presets import Preset, presets
from workbench.trace import Trace

FOLDER = Path(__file__).parent / "runs"


@cache
def bundled() -> dict[str, tuple[Trace, int | None]]:
    """Name of a preset -> its recorded run, and the token to look at first. Where a file is missing there is none."""
    files = {name: FOLDER / f"{name.replace(' ', '-')}.wb" for name in presets()}
    return {name: (Trace.load(file), presets()[name].at) for name, file in files.items() if file.exists()}


def decode(preset: Preset) -> Trace:
    """The run of a preset; where its cache is set on the way (`turn`), full up to there."""
    if preset.turn is None:
        return wb.decode("embedded", preset.prompt, preset.decoder, cache=preset.cache, **preset.settings)
    session = wb.Session("embedded", preset.prompt, preset.decoder, **preset.settings)
    session.run(until=f"index >= {preset.turn - 1}")
    branch = session.fork(at=preset.turn, cache=preset.cache)
    branch.run()
    return branch.trace


def main() -> None:
    """Decode the run of every preset, and write it."""
    FOLDER.mkdir(exist_ok=True)
    for name, preset in presets().items():
        trace = decode(preset)
        path = FOLDER / f"{name.replace(' ', '-')}.wb"
        path.unlink(missing_ok=True)
        trace.save(path)
        print(f"{path.name}: {len(trace.token_ids)} tokens, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
