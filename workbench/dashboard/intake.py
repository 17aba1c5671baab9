"""What a page sends, looked at before Gradio does anything with it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from workbench.dashboard.uploads import UPLOADS

__all__ = ["Blocks", "sound"]

UNFIT = "the page sent a value that does not fit its control; reload the page"
FILE = "a file: expected one that was just handed in; addresses and paths are not read"
MANY = (gr.CheckboxGroup, gr.UploadButton)  # controls whose value is more than one text, number or choice
MAX_DEPTH, MAX_INT = 8, 2**53  # of lists and objects within each other; of whole numbers, as browsers have them


def sound(value: Any) -> Any:
    """The value, files without their addresses.

    Raises gr.Error for a file that was not handed in, without a look-up of any kind; and for what no page sends: text
    that is not Unicode, whole numbers beyond a browser's, objects nested deeply.
    """
    for part, depth in _parts(value):
        if depth > MAX_DEPTH or (isinstance(part, int) and abs(part) > MAX_INT):
            raise gr.Error(UNFIT, print_exception=False)
        if isinstance(part, str) and any("\ud800" <= letter <= "\udfff" for letter in part):
            raise gr.Error(UNFIT, print_exception=False)
        if isinstance(part, dict) and {"path", "url"} & set(part):
            if not UPLOADS.holds(part.get("path")):
                raise gr.Error(FILE, print_exception=False)
            part.pop("url", None)
    return value


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """A value and all that lies in it, each with its depth."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        inner = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting += [(one, depth + 1) for one in inner]


class Blocks(gr.Blocks):
    """Blocks that look at what a page sends; no exception of Gradio's reaches a visitor, but its own refusals do."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> Any:
        try:
            for block, value in zip(block_fn.inputs, inputs, strict=False):
                if isinstance(sound(value), list | dict) and not isinstance(block, MANY):
                    raise gr.Error(UNFIT, print_exception=False)
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except gr.Error as error:
            line = " ".join(str(error.message).split())
            raise gr.Error(line[:500], print_exception=False) from None
        except Exception:  # noqa: BLE001  (a value that its control cannot take: the page never sends one)
            raise gr.Error(UNFIT, print_exception=False) from None
