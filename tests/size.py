"""Lines of Python: those of members, one file a method, and those of the platform they stand on.

    python -m tests.size [--files]

A member is a file that holds what a line of `workbench/members.py` names: a decoder, drafter, shape, verifier or cache
method, a view, a recipe of training (the last two are counted apart, too). All other files of `workbench/`, `kernels/`
and `benchmarks/` are platform. Physical lines, blank ones and docstrings too.
"""

import sys
from collections import Counter
from pathlib import Path

from workbench.members import FUNCTIONS, MEMBERS

ROOT = Path(__file__).parents[1]
FOLDERS = ("workbench", "kernels", "benchmarks")


def members() -> dict[Path, str]:
    """The files of all registered members, and the family of each; the stack itself is platform."""
    return {Path(module.replace(".", "/") + ".py"): family for family, _, module, _ in MEMBERS if family != "cache"}


def sizes() -> tuple[dict[Path, int], dict[Path, int]]:
    """Lines by file: of members, of the platform."""
    ours, member, platform = members(), {}, {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT)
        (member if name in ours else platform)[name] = len(file.read_text().splitlines())
    return member, platform


def main(arguments: list[str]) -> None:
    member, platform = sizes()
    rooms = Counter()
    for file, lines in platform.items():
        rooms["/".join(file.parts[:2])] += lines
    ours = members()
    print(f"members   {sum(member.values()):6}  {len(member)} files")
    for family in (None, *FUNCTIONS):
        lines = [n for file, n in member.items() if (ours[file] if ours[file] in FUNCTIONS else None) == family]
        print(f"  {sum(lines):6}  {FUNCTIONS.get(family, 'of decoding')}, {len(lines)} files")
    print(f"platform  {sum(platform.values()):6}  {len(platform)} files")
    for room, lines in rooms.most_common():
        print(f"  {lines:6}  {room}")
    if "--files" in arguments:
        for file, lines in sorted((member | platform).items(), key=lambda item: -item[1]):
            print(f"{lines:6}  {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
