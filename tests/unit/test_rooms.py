"""The rooms of the package, and which way imports point: read from the sources, lazy and typing imports counted."""

import ast
from collections import Counter
from pathlib import Path

import workbench
import workbench_kernels

# from the top down; a room imports from those below it
ROOMS = [
    *("cli", "dashboard", "widgets", "report", "web", "views", "experiments", "training"),
    *("api", "session", "editing", "cursor", "conditions", "provenance", "generation"),
    *("decoders", "device", "speculation", "rounds", "control", "models", "engine", "cache"),
    *("trace", "declare", "workbench", "members", "aliases", "values", "errors"),
]
UPWARD = {("session", "widgets")}  # `Session.widget()`, which imports when it is called
FRONT_ENDS = ("cli", "dashboard", "widgets", "web", "views")
FOR_FRONT_ENDS = {
    *FRONT_ENDS, "session", "cursor", "api", "conditions", "trace", "declare", "report", "members", "aliases", "values",
    "errors", "workbench", "experiments",
}  # fmt: skip
# what front-ends still import beside these: room -> how many imports; a number may only fall
STILL = {"models": 2, "engine": 1, "cache": 1}
CIRCLE = 4  # files


def sources(package) -> dict[str, Path]:
    """Module names and files of a package."""
    root = Path(package.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        name = ".".join((root.name, *path.relative_to(root).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{entry.name}" for entry in node.names)
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {entry.name for entry in node.names}
    return found & known.keys()


MODULES = sources(workbench)
IMPORTS = {name: imports(path, MODULES) - {name} for name, path in MODULES.items() if name != "workbench.__main__"}


def room(module: str) -> str:
    return module.split(".")[min(1, module.count("."))]


def circles() -> list[list[str]]:
    """Sets of modules each of which reaches all the others."""
    reach = {name: set(found) for name, found in IMPORTS.items()}
    for middle in reach:
        for found in reach.values():
            if middle in found:
                found |= reach[middle]
    rings = {frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in reach}
    return sorted(sorted(ring) for ring in rings)


def test_no_import_circle_is_larger_than_four_files():
    assert not [ring for ring in circles() if len(ring) > CIRCLE]


def test_imports_point_downward_but_for_one():
    place = {name: number for number, name in enumerate(ROOMS)}
    arrows = {(room(name), room(other)) for name, found in IMPORTS.items() for other in found}
    assert {end for arrow in arrows for end in arrow} <= set(ROOMS), "a room without a place"
    assert {(a, b) for a, b in arrows if place[a] > place[b]} == UPWARD


def test_front_ends_reach_decoding_through_sessions_traces_and_declarations():
    found = Counter(room(other) for name, others in IMPORTS.items() if room(name) in FRONT_ENDS for other in others)
    beyond = {name: count for name, count in found.items() if name not in FOR_FRONT_ENDS}
    assert all(count <= STILL.get(name, 0) for name, count in beyond.items()), beyond


def test_the_kernels_know_nothing_of_the_package():
    for name, path in sources(workbench_kernels).items():
        assert not imports(path, MODULES), name
