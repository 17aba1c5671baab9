"""Several sequences, one forward: the linear layers run over the rows of all, attention over each one's own cache.

`together` runs tasks side by side, whatever they decode with. Each goes on until its round asks for a forward; once all
wait, the requests to one model become one forward. No task sees the others: what it gets is what it would get alone,
up to the rounding of wider products.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch

from workbench.cache.protocol import CacheStore
from workbench.engine.model import ForwardRequest, LanguageModel, Output

T = TypeVar("T")
Asked = tuple[LanguageModel, ForwardRequest]
NUMBERS = count()
ROWS = 1024  # of a forward that several share, at most


class Bundle(CacheStore):
    """The stores of several requests as the one of a forward over all their rows, one behind the other.

    rows: per request, which rows of the forward are its own. Requests of one bundle run the same layers.
    """

    length = staged = behind = 0

    def __init__(self, requests: Sequence[ForwardRequest]):
        self.requests, self.rows, start = requests, [], 0
        for request in requests:
            self.rows.append(slice(start, start + len(request.positions)))
            start += len(request.positions)

    def request(self) -> ForwardRequest:
        """One request for all: their rows, and the logits that each asks for."""
        first, tokens = self.requests[0], [request.tokens for request in self.requests]
        if first.embedded:
            tokens = torch.cat(tokens)
        else:
            tokens = [int(id) for ids in tokens for id in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
        positions = [int(position) for request in self.requests for position in request.positions]
        asked = [rows.start + row for rows, request in zip(self.rows, self.requests, strict=True)
                 for row in request.asked]  # fmt: skip
        return ForwardRequest(tokens, positions, self, None, first.layers, asked, first.want)

    def split(self, out: Output) -> list[Output]:
        """What each request gets of the forward's output."""
        logits = out.logits.split([len(request.asked) for request in self.requests])
        return [
            Output(mine, *(None if x is None else x[rows] for x in (out.hidden, out.exit)),
                   None if out.states is None else {n: x[rows] for n, x in out.states.items()})
            for rows, mine in zip(self.rows, logits, strict=True)
        ]  # fmt: skip

    @property
    def stores(self) -> list[CacheStore]:
        return [request.cache for request in self.requests]

    def begin(
        self, positions: Sequence[int], visible: Any = None, layers: Sequence[int] | None = None, tokens: Any = None
    ) -> None:
        """Open the forward in every store; where one refuses, in none."""
        opened = []
        try:
            for request in self.requests:
                request.cache.begin(request.positions, request.mask, layers, request.ids)
                opened.append(request.cache)
        except BaseException:
            for store in opened:
                store.end()
            raise

    def stage(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        for store, rows in zip(self.stores, self.rows, strict=True):
            store.stage(layer, k[:, rows], v[:, rows])

    def end(self) -> None:
        for store in self.stores:
            store.end()


class Hub:
    """Where the tasks of one `together` wait for their forwards; of the thread that made it alone."""

    def __init__(self, home: Any):
        self.home, self.thread = home, threading.get_ident()

    def ask(self, model: LanguageModel, request: ForwardRequest) -> Output:
        """Wait, in a task, for the forward that holds this request."""
        (found,) = self.home.switch([(model, request)])
        if isinstance(found, Exception):
            raise found
        return found


def _answer(asked: list[Asked]) -> list[Output | Exception]:
    """One forward for all requests to one model that can share one, or the error that it raised."""
    groups: dict[tuple, list[int]] = {}
    for number, (model, request) in enumerate(asked):
        groups.setdefault((id(model), request.kind), []).append(number)
    found: dict[int, Output | Exception] = {}
    for alike in groups.values():
        model = asked[alike[0]][0]
        for numbers in _shares(alike, asked) if len(alike) > 1 and model.bundles else [[n] for n in alike]:
            requests, start = [asked[number][1] for number in numbers], time.perf_counter()
            try:
                outputs = model.forward_many(requests) if len(numbers) > 1 else [requests[0].ask(model)]
                if model.device.type == "cuda":
                    torch.cuda.current_stream(model.device).synchronize()
            except Exception as error:
                found |= dict.fromkeys(numbers, error)
                continue
            wall, own = (time.perf_counter() - start) * 1000, next(NUMBERS)
            for number, out in zip(numbers, outputs, strict=True):
                out.number, out.sequences, out.wall_ms = own, len(numbers) if len(numbers) > 1 else None, wall
                found[number] = out
    return [found[number] for number in range(len(asked))]


def _shares(numbers: list[int], asked: list[Asked]) -> list[list[int]]:
    """The requests as few forwards of at most `ROWS` rows."""
    shares, rows = [[]], 0
    for number in numbers:
        count = len(asked[number][1].positions)
        if shares[-1] and rows + count > ROWS:
            shares.append([])
            rows = 0
        shares[-1].append(number)
        rows += count
    return shares


HUB: ContextVar[Hub | None] = ContextVar("hub", default=None)


def hub_here() -> Hub | None:
    """The hub of the task that runs, which a round asks for its forwards; threads that a task starts have none."""
    hub = HUB.get()
    return hub if hub is not None and hub.thread == threading.get_ident() else None


def together(tasks: Sequence[Callable[[], T]], waited: Callable[[float], None] = lambda seconds: None) -> list[T]:
    """What the tasks return, their forwards bundled. An error in one ends the others where they are, and is raised.

    Within a task of another `together` the forwards are bundled with those of that one's tasks, too. waited: told how
    long forwards took in which nothing here had a share.
    """
    outer = hub_here()
    if len(tasks) < 2:
        return [task() for task in tasks]
    from greenlet import getcurrent, greenlet

    hub, results = Hub(getcurrent()), {}

    def run(number: int, task: Callable[[], T]) -> None:
        HUB.set(hub)  # in the context of this greenlet alone
        results[number] = task()

    def answer(asked: list[Asked]) -> list[Output | Exception]:
        if outer is None:
            return _answer(asked)
        start = time.perf_counter()
        found = outer.home.switch(asked)
        own = {out.number: out.wall_ms for out in found if isinstance(out, Output)}
        waited(time.perf_counter() - start - sum(own.values()) / 1000)
        return found

    greenlets = [greenlet(partial(run, number, task)) for number, task in enumerate(tasks)]
    for one in greenlets:
        one.gr_context = copy_context()
    with torch.inference_mode():  # tasks change between each other, and are ended, inside of it
        try:
            asked = {number: one.switch() for number, one in enumerate(greenlets)}
            while asked := {number: pairs for number, pairs in asked.items() if not greenlets[number].dead}:
                found = iter(answer([pair for pairs in asked.values() for pair in pairs]))
                for number, pairs in asked.items():
                    asked[number] = greenlets[number].switch([next(found) for _ in pairs])
        finally:
            for one in greenlets:
                with suppress(BaseException):
                    one.throw()
    return [results[number] for number in range(len(tasks))]
