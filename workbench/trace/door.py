"""The door of a trace: what a file holds is checked here once, by the schema, and never again.

What came in keeps to `schema.py`: types, ids, finite numbers (others are null and named in the round's `flags`),
columns of equal length, rounds and tokens in order. A column that is declared there is checked; what is not has to be
plain JSON. And it costs what its bytes allow: the tables of a file have at most `FREE` cells and `CELLS` for each of
its bytes, however many layers, heads or positions it claims.
"""

from typing import Any

from workbench.trace import schema_1
from workbench.trace.forms import ANY, LAYERS, SCALARS, Damaged, Found, by_name, check, finite, writable
from workbench.trace.schema import EVENTS, NAMES, TABLES, Column
from workbench.trace.tables import model

Event = dict[str, Any]
CELLS, FREE = 16, 2**21  # cells of tables for a byte of the file, and those that any file may have
LISTED = 4096  # what a round may count beyond the bytes of its line
COUNTED = ("drafted", "accepted", "emitted", "depth")
NAMED = 100  # lines that are named one by one where they had to be dropped
FIELDS = {kind: {c.name: c for c in columns} for kind, columns in EVENTS.items()}
REQUIRED = {kind: [(c.name, SCALARS[c.type][0]) for c in of.values() if c.required] for kind, of in FIELDS.items()}


class Door:
    """Lets the events of one file in: the run by `run`, then the others by `enter`.

    log: those that are in, the run first.
    """

    def __init__(self) -> None:
        self.log: list[Event] = []
        self._lost: tuple[str, ...] = ()  # about the first things that had to stay outside
        self._more = 0  # how many others
        self._spare = FREE  # cells that the bytes so far allow, and no table has taken
        self._old = False  # the file is of schema 1
        self._last: Event = {}  # the last round let in
        self._round, self._index = -1, 0  # its number, and the index of the next token
        self._sizes: dict[str, tuple[int, int]] = {}  # role -> layers and heads of its cache, where the run says so
        self._layers = 0  # of all caches, counted again in every round
        self._names: frozenset[str] = frozenset()

    @property
    def dropped(self) -> list[str]:
        """A line about each thing that had to stay outside."""
        return [*self._lost, *([f"and {self._more} more"] if self._more else [])]

    def note(self, line: int, problem: str) -> None:
        """Name what had to stay outside; of very many, how many."""
        if len(self._lost) < NAMED:
            self._lost += (f"line {line}: {problem}",)
        else:
            self._more += 1

    def run(self, event: Event, size: int) -> None:
        """Let the run event in, without the fields that cannot be used. size: bytes of its line."""
        self._spare += CELLS * size
        kept, found = {}, Found()
        self._old = event["schema"] == 1
        for name, value in (schema_1.current_run(event) if self._old else event).items():
            try:
                check(FIELDS["run"].get(name, ANY), [value], (name,), found)
                kept[name] = value
            except Damaged as why:
                self.note(1, f"{why}; {name} left out")
        for path, largest in found.flags.items():
            self.note(1, f"{'.'.join(path)} is not finite; null instead")
            kept = finite(kept, largest, path)
        self.log.append(kept)

    def enter(self, *lines: tuple[Any, int, int]) -> None:
        """Let events in, or name the lines they stood in.

        lines: of each its event, or the `Damaged` that says why there is none; its bytes; its number. They are looked
        at together; where anything is wrong or not finite, one by one.
        """
        before = dict(vars(self))
        try:
            self._enter(lines)
        except Damaged as why:
            if len(lines) == 1:
                self.note(lines[0][2], str(why))
                return
            vars(self).update(before)
            for line in lines:
                self.enter(line)

    def _enter(self, lines: tuple[tuple[Any, int, int], ...]) -> None:
        found, events = Found(), []
        for event, size, _ in lines:
            self._spare += CELLS * size
            events.append(self._shaped(event))
        for kind in {event["type"] for event in events}:
            _check([event for event in events if event["type"] == kind], FIELDS.get(kind, {}), found)
        if found.flags and len(lines) > 1:
            raise Damaged("numbers are not finite")
        for path, largest in found.flags.items():
            events = finite(events, largest, path)
        for event, (_, size, line) in zip(events, lines, strict=True):
            if event["type"] == "round":
                self._in_order(event, size)
                if event.get("cache") and (claimed := self._claimed(event["cache"])):
                    self.note(line, f"{_called(event)} claims {claimed}: its cache is left out")
                    del event["cache"]
                self._last = event
        self._few(found.names)
        self._pay(found.cells)
        if found.flags and events[0].get("round") == self._last.get("round"):
            named = [*self._last.get("flags", ()), *map(".".join, found.flags)]
            self._last["flags"] = list(dict.fromkeys(named))
        self.log += events

    def _shaped(self, event: Any) -> Event:
        """An event of a kind, with what it cannot do without."""
        if isinstance(event, Damaged):
            raise event
        if self._old:
            layers = {one.get("role"): one.get("layers") for one in self.log[0].get("models") or ()}
            event = schema_1.current(event, layers, self._pay)
        if type(event) is not dict or type(event.get("type")) is not str:
            raise Damaged("not an event")
        kind = event["type"]
        if kind == "run":
            raise Damaged("another run begins; its rounds belong into a file of their own")
        for name, allowed in REQUIRED.get(kind, ()):
            if type(event.get(name)) not in allowed:
                raise Damaged(f"{kind} event without {'a round number' if name == 'round' else name}")
        return {name: value for name, value in event.items() if kind != "round" or value is not None}

    def _in_order(self, event: Event, size: int) -> None:
        number, index, emitted = event["round"], event["index"], event.get("emitted") or 0
        if number <= self._round:
            raise Damaged(f"round {number} comes again, or too late")
        if index < self._index:
            raise Damaged(f"round {number} has token {index} again")
        if len(event.get("tokens", {}).get("token_id", ())) != emitted:
            raise Damaged(f"round {number} has damaged tokens: not as many as were emitted")
        for name in COUNTED:
            if event.get(name, 0) > LISTED + size:
                raise Damaged(f"round {number} has damaged {name}: more than it can list")
        nodes, prompt = event.get("drafts", {}).get("node", ()), event.get("prompt")
        if len(set(nodes)) < len(nodes):
            raise Damaged(f"round {number} has damaged drafts: a node comes twice")
        if prompt and len(prompt["token_id"]) + 1 != len(self.log[0].get("prompt_ids") or ()):
            raise Damaged(f"round {number} has damaged prompt: not one for every token of the prompt but the first")
        self._round, self._index = number, index + emitted

    def _claimed(self, caches: Event) -> str:
        """What columns over layers by role claim, where that is more than the bytes allow."""
        layers, heads = self._layers, 0
        for role, packed in caches.items():
            n, many = self._sizes.get(role) or self._size_of(role, packed)
            for name, values in packed.items():
                if type(values) is list and len(values) != n and name in LAYERS:
                    raise Damaged(f"round {self._round} has damaged cache: {role}.{name} is not over {n} layers")
            layers, heads = layers + n, heads + many
        cells = heads * len(TABLES["bits"])
        if cells > self._spare or layers * len(LAYERS) > self._spare:
            return "more layers and heads than the file's bytes allow"
        self._layers = layers
        self._spare -= cells
        return ""

    def _size_of(self, role: str, packed: Event) -> tuple[int, int]:
        """Layers and KV heads of a model's cache: as the run says, else as many as there are values."""
        facts = model(self.log[0], role)
        n = facts.get("layers") or max((len(values) for values in packed.values() if type(values) is list), default=1)
        each = facts.get("kv_heads") or 1
        if type(each) is list and len(each) != n:
            raise Damaged(f"round {self._round} has damaged cache: {role} has {len(each)} layers or {n}")
        size = n, sum(each) if type(each) is list else n * each
        if facts.get("layers"):
            self._sizes = {**self._sizes, role: size}
        return size

    def _few(self, names: set[str]) -> None:
        """Count the different names of a file: each is a line, a bar or a column somewhere."""
        if len(self._names | names) > NAMES:
            raise Damaged(f"the file has more than {NAMES} different names")
        if any(writable(name) != name for name in names - self._names):
            raise Damaged("a name holds lone surrogates")
        self._names |= names

    def _pay(self, cells: int) -> None:
        if cells > self._spare:
            raise Damaged("more than the file's bytes allow")
        self._spare -= cells


def _check(events: list[Event], known: dict[str, Column], found: Found) -> None:
    """Check events of one kind, field by field; one of a later version, of which nothing is known, is kept as it is."""
    fields = by_name(events, ())
    del fields["type"]
    for name, values in fields.items():
        try:
            check(known.get(name, ANY), values, (name,), found)
        except Damaged as why:
            raise Damaged(f"{_called(events[0])} has damaged {name}: {why}") from None
    if known:
        found.names.update(fields.keys() - known.keys())


def _called(event: Event) -> str:
    return f"round {event['round']}" if event["type"] == "round" else f"{event['type']} event"
