"""Lines of Python: those of members, one file a method, and those of the platform they stand on.

    python -m tests.size [--files]

A member is a file that registers a decoder, drafter, shape, verifier or cache method; all other files of `workbench/`,
`kernels/` and `benchmarks/` are platform. Physical lines, blank ones and docstrings too.
"""

import sys
from collections import Counter
from pathlib import Path

from workbench import declare

ROOT = Path(__file__).parents[1]
FOLDERS = ("workbench", "kernels", "benchmarks")


def members() -> set[Path]:
    """The files of all registered members of this package."""
    known = (declare.get(family, name) for family in declare.FAMILIES for name in declare.names(family))
    files = {Path(sys.modules[cls.__module__].__file__) for cls in known if cls.__module__.startswith("workbench.")}
    return {file for file in files if file.name not in ("base.py", "stack.py", "__init__.py")}


def sizes() -> tuple[dict[Path, int], dict[Path, int]]:
    """Lines by file: of members, of the platform."""
    ours, member, platform = members(), {}, {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        (member if file in ours else platform)[file.relative_to(ROOT)] = len(file.read_text().splitlines())
    return member, platform


def main(arguments: list[str]) -> None:
    member, platform = sizes()
    rooms = Counter()
    for file, lines in platform.items():
        rooms["/".join(file.parts[:2])] += lines
    print(f"members   {sum(member.values()):6}  {len(member)} files")
    print(f"platform  {sum(platform.values()):6}  {len(platform)} files")
    for room, lines in rooms.most_common():
        print(f"  {lines:6}  {room}")
    if "--files" in arguments:
        for file, lines in sorted((member | platform).items(), key=lambda item: -item[1]):
            print(f"{lines:6}  {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
