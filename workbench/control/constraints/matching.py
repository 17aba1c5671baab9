"""Grammars as matchers, by llguidance (https://github.com/guidance-ai/llguidance): regular expressions, JSON schemas
and context-free grammars over the bytes of the text, whatever tokens spell it.

A grammar is somebody's text: it is first compiled in a process of its own, within a second of processor time, and
refused in a line where it takes longer, takes too much memory, or is none. From then on every mask has llguidance's own
limits.
"""

import json
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from workbench.control.constraints import compiling
from workbench.errors import BadInput, Unsupported, shown

LONGEST = 64 * 1024  # bytes of a grammar
LIMIT_S = 1.0  # of processor time to compile it
SLOWEST = 10  # times that, where the machine is busy
STARTING_S = 30.0  # for the process to begin
ANY_SPELLING = '\n%llguidance {"no_forcing": true}'  # else it asks for the tokenizer's own spelling of what is certain
AT_ONCE = threading.Semaphore(2)  # such processes
COMPLEX = ("LexerTooComplex", "ParserTooComplex", "InternalError")


def needs(package: str, what: str) -> None:
    """Raise BadInput where an optional package is missing."""
    if find_spec(package) is None:
        raise BadInput(f'{what} needs {package}; install it: pip install "decoding-workbench[constraints]"')


@dataclass(frozen=True)
class GrammarMatcher:
    """A text's place in a grammar. inner: the llguidance matcher behind it, which is copied and never changed."""

    inner: Any
    size: int

    @property
    def complete(self) -> bool:
        return self.inner.is_accepting()

    def mask(self) -> torch.Tensor:
        copy = self.inner.deep_copy()  # what is computed may be remembered there
        words = b"" if copy.is_stopped() else copy.compute_bitmask()
        if not words or (copy.is_error() and "NoExtension" in copy.get_error()):  # found out late
            return torch.zeros(self.size, dtype=torch.bool)
        self._sound(copy)
        words = np.frombuffer(words, np.uint8)
        return torch.from_numpy(np.unpackbits(words, count=self.size, bitorder="little").astype(bool))

    def after(self, token: int) -> "GrammarMatcher | None":
        copy = self.inner.deep_copy()
        if copy.is_stopped() or not copy.validate_tokens([token]):
            self._sound(copy)
            return None
        copy.consume_token(token)
        self._sound(copy)
        return GrammarMatcher(copy, self.size)

    @staticmethod
    def _sound(inner: Any) -> None:
        if inner.is_error() and inner.stop_reason() in COMPLEX:
            raise Unsupported("the constraint has become too complex for a token's time; expected a simpler one")


@lru_cache(maxsize=16)
def compiled(grammar: str, pieces: tuple[bytes, ...], what: str) -> GrammarMatcher:
    """A grammar in llguidance's Lark, over a vocabulary, however its texts are split into tokens. what: its name in
    messages.

    Raises BadInput where it is none, or takes more than LIMIT_S to compile.
    """
    grammar += ANY_SPELLING
    fault = _fault(grammar, pieces)
    if not fault:
        made, fault = compiling.matcher(_vocabulary(pieces), grammar)
    if fault:
        raise BadInput(f"{what}: {_in_words(fault)}; expected one that llguidance can hold a text to")
    return GrammarMatcher(made, len(pieces))


def _in_words(fault: str) -> str:
    """What llguidance says of a grammar, without its excerpt."""
    if fault.startswith("panic"):
        return "it asks for what there is not here, such as a special token"
    if fault.startswith("NoExtension"):
        return "no text that this vocabulary can write satisfies it"
    return " ".join(re.split(r"\n *\d+ \|", fault)[0].split())[:300]


_vocabulary = lru_cache(maxsize=4)(compiling.vocabulary)


def _fault(grammar: str, pieces: tuple[bytes, ...]) -> str:
    """What is wrong with a grammar, found out in a process that may be killed; empty where nothing is."""
    command = [sys.executable, compiling.__file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with AT_ONCE, subprocess.Popen(command, **pipes) as worker:
        clock = threading.Timer(STARTING_S, worker.kill)
        clock.start()
        try:
            worker.stdin.write(pickle.dumps((grammar, pieces, LIMIT_S)))
            worker.stdin.close()
            ready = worker.stdout.readline()
            clock.cancel()
            if not ready:
                raise Unsupported("the process that compiles grammars did not start; see: workbench doctor")
            clock = threading.Timer(LIMIT_S * SLOWEST, worker.kill)
            clock.start()
            told = worker.stdout.read()
        except OSError:  # it died while it read
            raise Unsupported("the process that compiles grammars did not start; see: workbench doctor") from None
        finally:
            clock.cancel()
            worker.kill()
    try:
        return json.loads(told)
    except ValueError:
        return f"it took more than {LIMIT_S:g} s, or too much memory, to compile"


def sized(what: str, text: str) -> str:
    """The text of a grammar; BadInput where it is empty, too long, or no Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadInput(f"{what}: {shown(text)} is no text in Unicode") from None
    if not 0 < size <= LONGEST:
        raise BadInput(f"{what}: expected 1 to {LONGEST} bytes, got {size}")
    return text
