"""The work on packed pages: pack, read, demote, and the acts on their slots.

An *arena* is a one-dimensional uint8 tensor of many pages; a page is named by its offset in units of 16 bytes
(`ALIGN`), a slot by its page's offset and its number 0..31. What names one is an integer tensor on the arena's device;
the kernels copy nothing to the host, except where `check` asks for it. Entries of slot lists with an offset below 0 do
nothing, so that lists can have a fixed length. `layout` says what lies where in a page.

Every function takes `implementation`: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can; `choose`
says which and why. They raise ValueError where shapes, dtypes or the kind of page do not fit, RuntimeError with the
reason where Triton is asked for and cannot run.
"""

from workbench_kernels.pages.layout import ALIGN, BITS, GAINS, RAW, SLOTS, PageFormat, ledger
from workbench_kernels.pages.rotation import rotate, rotate_pages
from workbench_kernels.pages.slots import compact, evict, gather, merge, move, scatter
from workbench_kernels.pages.support import choose
from workbench_kernels.pages.whole import blank, demote, pack, unpack

__all__ = [
    "ALIGN",
    "BITS",
    "GAINS",
    "RAW",
    "SLOTS",
    "PageFormat",
    "blank",
    "choose",
    "compact",
    "demote",
    "evict",
    "gather",
    "ledger",
    "merge",
    "move",
    "pack",
    "rotate",
    "rotate_pages",
    "scatter",
    "unpack",
]
