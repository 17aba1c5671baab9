"""Members of other packages (entry points). One that cannot be loaded is named, and hides nothing else."""

import dataclasses
import threading
import warnings
from importlib.metadata import EntryPoint, entry_points

from workbench.declare.fields import Declared, describe, make
from workbench.declare.registry import FAMILIES, KNOWN, register
from workbench.errors import BadInput, shown

GROUP = "decoding_workbench"

_lock = threading.RLock()  # held while they are loaded
_loaded = _loading = False
_broken: dict[str, str] = {}  # entry point -> why it could not be loaded


def broken() -> dict[str, str]:
    """The plug-ins (entry points) that could not be loaded, by name, and why. The first call loads all, and warns."""
    global _loaded, _loading
    if _loaded:
        return dict(_broken)
    with _lock:
        if _loaded or _loading:  # by another thread meanwhile; asked for by a plug-in as it is loaded
            return dict(_broken)
        _loading = True
        try:
            for entry in entry_points(group=GROUP):
                _load(entry)
            _loaded = True
        finally:
            _loading = False
    for name, reason in _broken.items():
        warnings.warn(f"the plug-in {name!r} is left out: {reason}", stacklevel=3)
    return dict(_broken)


def _load(entry: EntryPoint) -> None:
    """Register what an entry point names. One that fails is noted, and leaves nothing behind."""
    family, _, name = entry.name.partition(".")
    before = {known: dict(members) for known, members in KNOWN.items()}
    try:
        if family not in KNOWN or not name:
            raise BadInput(f"expected family.name, with a family of {', '.join(KNOWN)}")
        found = entry.load()
        if family not in FAMILIES:
            if not callable(found):
                raise BadInput(f"expected a function, got {shown(found)}")
            if not isinstance(getattr(found, "offers", {}), dict):
                raise BadInput(f"expected offers as from @offered, got {shown(found.offers)}")
            register(family, name)(found)
            return
        if not (isinstance(found, type) and issubclass(found, Declared) and dataclasses.is_dataclass(found)):
            raise BadInput(f"expected a dataclass that derives from workbench.declare.Declared, got {shown(found)}")
        describe(found)
        register(family, name)(found)
        make(found)  # front-ends start from the defaults
    except (Exception, SystemExit) as error:
        KNOWN.update(before)
        reason = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        _broken[entry.name] = f"{entry.value} could not be loaded: {' '.join(reason.split())}"
