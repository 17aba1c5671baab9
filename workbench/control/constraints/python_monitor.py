"""Monitor-guided decoding: behind a dot, only names that are there."""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from workbench.control.constraints.base import Constraint, pieces_of
from workbench.control.constraints.matching import needs
from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.engine.text import decode
from workbench.errors import Unsupported

MEMBER = re.compile(r"(?:(?<!\w)[^\W\d]\w*|[)\]])\.(\w*)\Z")  # a name or a bracket, a dot, a part of a name
OWNER = re.compile(r"(?:(?<!\w)[^\W\d]\w*|[)\]])\Z")
NAME = re.compile(r"\w*")


@register("constraint", "python_monitor")
@dataclass(frozen=True)
class PythonMonitor(Constraint):
    """Where Python code stands at a dot behind a name or a bracket, only names that jedi finds there may follow, each
    written to its end. Everywhere else, and where jedi finds none, all is allowed.

    jedi reads the prompt and the new text up to the dot, at most `reach` characters of it, once for every dot; it looks
    into modules that are installed here, so an app leaves this to its owner. A dot that takes it longer than `seconds`
    ends the run. Source: "Monitor-Guided Decoding of Code LMs with Static Analysis of Repository Context"
    (https://arxiv.org/abs/2306.10763; https://github.com/microsoft/monitors4codegen), here with jedi
    (https://github.com/davidhalter/jedi) in the place of a language server. Departures: a token that holds the dot as
    well is judged before it is written; one with a dot further inside is judged by what follows.
    """

    reach: int = setting(8000, ge=100, le=100_000, unit="characters", help="how much of the text jedi reads")
    seconds: float = setting(20.0, gt=0, le=600, unit="s", help="how long it may take over one dot")

    trust = "owner"

    def start(self, lm: LanguageModel, prompt_ids: Sequence[int]) -> "MonitorMatcher":
        pieces = pieces_of(lm)
        needs("jedi", "constraint 'python_monitor'")
        return MonitorMatcher(self, pieces, decode(lm.tokenizer, prompt_ids).encode())

    def names(self, code: str) -> frozenset[str]:
        """The names that may stand behind code that ends in a dot; none where jedi does not know.

        Raises Unsupported where it takes too long.
        """
        code = code[-self.reach :].partition("\n")[2] if len(code) > self.reach else code
        return _names(code, self.seconds)


@lru_cache(maxsize=512)
def _names(code: str, seconds: float) -> frozenset[str]:
    found: list[frozenset[str]] = []

    def look() -> None:
        import jedi

        try:
            names = jedi.Script(code).complete()
            inside = all(one.type != "keyword" for one in names)  # else the dot is in a comment, or of a number
            found.append(frozenset(one.name for one in names if inside))
        except Exception:  # noqa: BLE001  (jedi's own, on code that is none)
            found.append(frozenset())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise Unsupported(f"constraint 'python_monitor': jedi took over {seconds:g} s at a dot; give it less reach")
    return found[0]


@dataclass(frozen=True)
class MonitorMatcher:
    """A text's place: its bytes with those of the prompt. A name that jedi does not find is left alone once it is
    written."""

    monitor: PythonMonitor
    pieces: tuple[bytes, ...]
    text: bytes

    @property
    def complete(self) -> bool:
        part, names = self._at_member()
        return not names or part in names

    def mask(self) -> torch.Tensor:
        allows = self._rule()
        return torch.tensor([bool(piece) and allows(piece) for piece in self.pieces])

    def after(self, token: int) -> "MonitorMatcher | None":
        piece = self.pieces[token]
        return replace(self, text=self.text + piece) if piece and self._rule()(piece) else None

    def _rule(self) -> Callable[[bytes], bool]:
        """Which tokens may come next."""
        part, names = self._at_member()
        if names:
            return _names_only(names, part)
        code = self.text.decode("utf-8", "ignore")
        names = self.monitor.names(f"{code}.") if OWNER.search(code) else names
        behind = _names_only(names, "") if names else None
        return lambda piece: behind is None or not piece.startswith(b".") or behind(piece[1:])

    def _at_member(self) -> tuple[str, frozenset[str]]:
        """What is written behind the last dot, and the names that may stand there; none where nothing is monitored."""
        code = self.text.decode("utf-8", "ignore")
        if not (member := MEMBER.search(code)):
            return "", frozenset()
        names, part = self.monitor.names(code[: member.start(1)]), member[1]
        return part, names if any(name.startswith(part) for name in names) else frozenset()


def _names_only(names: frozenset[str], part: str) -> Callable[[bytes], bool]:
    """Which tokens go on with a name of which `part` is written, or end it where it is whole."""
    begun = {name[:size] for name in names for size in range(len(name) + 1)}

    def allows(piece: bytes) -> bool:
        text = piece.decode("utf-8", "replace")
        head = NAME.match(text)[0]
        return part + head in (begun if head == text else names)

    return allows
