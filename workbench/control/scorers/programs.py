"""A small language of programs that write a sequence of numbers: it always ends, and never fails.

    a = range(0, 10, 2)
    b = tile(a, 3)
    output b

A line gives a name to what one function makes of numbers and of earlier names; nothing nests. Lines, items, digits and
values are bounded, so a run takes at most LINES times LENGTH small steps, whatever the text says.
"""

import math
import re
from collections.abc import Callable
from itertools import accumulate

LINES, LENGTH, LARGEST = 64, 1024, 2**31  # of a program, of a sequence, of a value
_NAME = r"[A-Za-z_][A-Za-z_0-9]{0,31}"
_LINE = re.compile(rf"({_NAME}) *= *([a-z]+)\(([^()]*)\)")
_OUTPUT = re.compile(rf"output +({_NAME})")
_NUMBER = re.compile(r"-?[0-9]{1,9}")

Numbers = list[int]


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError


def _range(start: int, stop: int, step: int) -> Numbers:
    _need(step != 0 and len(range(start, stop, step)) <= LENGTH)
    return [*range(start, stop, step)]


def _tile(a: Numbers, count: int) -> Numbers:
    _need(count >= 0 and len(a) * count <= LENGTH and count <= LENGTH)
    return a * count


def _every(a: Numbers, step: int) -> Numbers:
    _need(step > 0)
    return a[::step]


def _pairs(act: Callable[[int, int], int]) -> Callable[[Numbers, Numbers | int], Numbers]:
    """Of a sequence and a number, or of two sequences item by item, up to the end of the shorter."""
    return lambda a, b: [act(x, y) for x, y in zip(a, [b] * len(a) if isinstance(b, int) else b, strict=False)]


def _mod(x: int, y: int) -> int:
    _need(y != 0)
    return x % y


# name -> what it takes (n a number, s a sequence, x either, * any more numbers), and what it makes of that
FUNCTIONS: dict[str, tuple[str, Callable[..., Numbers]]] = {
    "range": ("nnn", _range),  # start, stop (left out), step
    "repeat": ("nn", lambda value, count: _tile([value], count)),
    "list": ("*", lambda *values: [*values]),
    "tile": ("sn", _tile),
    "reverse": ("s", lambda a: a[::-1]),
    "replace": ("snn", lambda a, old, new: [new if x == old else x for x in a]),
    "slice": ("snn", lambda a, start, stop: a[start:stop]),
    "every": ("sn", _every),
    "add": ("sx", _pairs(lambda x, y: x + y)),
    "subtract": ("sx", _pairs(lambda x, y: x - y)),
    "mod": ("sx", _pairs(_mod)),
    "largest": ("sn", lambda a, count: sorted(a, reverse=True)[: max(count, 0)]),
    "smallest": ("sn", lambda a, count: sorted(a)[: max(count, 0)]),
    "even": ("s", lambda a: [x for x in a if x % 2 == 0]),
    "odd": ("s", lambda a: [x for x in a if x % 2]),
    "nonzero": ("s", lambda a: [x for x in a if x]),
    "sums": ("s", lambda a: [*accumulate(a)]),
    "concat": ("ss", lambda a, b: a + b),
    "interleave": ("ss", lambda a, b: [x for pair in zip(a, b, strict=False) for x in pair]),
}


def run(text: str) -> tuple[Numbers, float] | None:
    """What the program at the beginning of a text writes, and its length in bits; None where there is none.

    Bits are those of a uniform prior: for each line the function, 8 bits or more for a number, and for a name which of
    the earlier lines it is of. What stands behind `output` is not read.
    """
    known: dict[str, Numbers] = {}
    lines, bits = 0, 0.0
    for line in text.split("\n", 4 * LINES)[: 4 * LINES]:
        line = line.strip(" \t\r")
        if not line:
            continue
        lines, bits = lines + 1, bits + math.log2(len(FUNCTIONS) + 1)
        if found := _OUTPUT.fullmatch(line):
            made = known.get(found[1])
            return None if made is None else (made, bits + math.log2(max(lines - 1, 1)))
        if not (found := _LINE.fullmatch(line)) or found[2] not in FUNCTIONS or lines > LINES:
            return None
        words = [word.strip(" \t") for word in found[3].split(",")] if found[3].strip(" \t") else []
        given = [int(word) if _NUMBER.fullmatch(word) else known.get(word) for word in words]
        kinds, act = FUNCTIONS[found[2]]
        if len(given) > LENGTH or not _fits(kinds, given):
            return None
        bits += sum(max(8, x.bit_length() + 1) if isinstance(x, int) else math.log2(max(lines - 1, 1)) for x in given)
        try:
            made = act(*given)
        except ValueError:
            return None
        if len(made) > LENGTH or any(abs(x) > LARGEST for x in made):
            return None
        known[found[1]] = made
    return None


def _fits(kinds: str, given: list[int | Numbers | None]) -> bool:
    """Whether arguments are of the kinds that a function takes; an unknown name is None, and of no kind."""
    if kinds == "*":
        return all(isinstance(x, int) for x in given)
    allowed = {"n": (int,), "s": (list,), "x": (int, list)}
    return len(kinds) == len(given) and all(isinstance(x, allowed[k]) for k, x in zip(kinds, given, strict=True))
