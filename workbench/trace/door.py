"""The door of a trace: what a file holds is checked here once, by the schema, and never again.

What came in keeps to `schema.py`: types, ids, finite numbers (others are null and named in the round's `flags`),
columns of equal length, rounds and tokens in order. A column that is declared there is checked; what is not has to be
plain JSON. And it costs what its bytes allow: the tables of a file have at most `FREE` cells and `CELLS` for each of
its bytes, however many layers, heads, runs or positions it claims.

Of every event first the form is looked at, its values going on a heap with those of others. Most heaps are as declared
at a glance (`forms.fit`); where one is not, each column is checked by itself, to be mended or named.
"""

from collections.abc import Iterable
from typing import Any

from workbench.trace.forms import SCALARS, Damaged, check, fit, plain, run_length, short, values_of, writable
from workbench.trace.schema import DERIVED, EVENTS, KEYS, NAMES, TABLES, Column

__all__ = ["Door"]

Event = dict[str, Any]
CELLS, FREE = 16, 2**21  # cells of tables for a byte of the file, and those that any file may have
LISTED = 4096  # what a round may count beyond the bytes of its line
COUNTED = ("drafted", "accepted", "emitted", "depth")
NAMED = 100  # lines that are named one by one where they had to be dropped
REMEMBERED = 10_000  # short texts
BATCH = 16  # events on a heap
FIELDS = {kind: {c.name: c for c in columns} for kind, columns in EVENTS.items()}
GROUPS = {name: {c.name: c for c in TABLES["tokens" if name == "prompt" else name]} for name in KEYS}
NEEDED = {name: [c.name for c in GROUPS[name].values() if c.required and c.name not in DERIVED] for name in KEYS}
NEEDED["prompt"].append("text")
LAYERS = {c.name: c for c in TABLES["cache"]}


def _types(columns: dict[str, Column]) -> dict[str, str]:
    return {column.name: column.type for column in columns.values()}


REQUIRED = {kind: [(c.name, SCALARS[c.type][0]) for c in of.values() if c.required] for kind, of in FIELDS.items()}
TYPES = {kind: _types(columns) for kind, columns in FIELDS.items()}
TYPES_IN_GROUPS = {name: {**_types(columns), "runs": "int", "chain": "bool"} for name, columns in GROUPS.items()}
TYPES_OVER_LAYERS = _types(LAYERS)


class Door:
    """Lets the events of one file in: the run by `run`, others by `enter`, and when there are no more, `close`.

    log: those that are in, the run first. dropped: a line about each thing that had to stay outside.
    """

    def __init__(self) -> None:
        self.log: list[Event] = []
        self.dropped: list[str] = []
        self._lost: list[tuple[int, str]] = []  # line and problem, of the first ones
        self._more = 0  # how many others
        self._spare = FREE  # cells that the bytes so far allow, and no table has taken
        self._models: list[Event] = []
        self._prompt = 0
        self._round, self._index = -1, 0  # the last round looked at, and the index of the next token
        self._last: Event = {}  # the last round let in
        self._over: dict[str, tuple[int, int]] = {}  # role -> layers and heads of its cache, where the run says so
        self._layers = 0  # of all caches
        self._cached = 0  # rounds with a cache
        self._names: set[str] = set()
        self._known: set[str | None] = {None}  # short texts that came in before
        self._waiting: list[tuple[int, Event, list[str]]] = []  # line, event, flags
        self._heap: dict[str, list] = {type_: [] for type_ in (*SCALARS, "topk")}

    def note(self, line: int, problem: str) -> None:
        """Name what had to stay outside; of very many, how many."""
        if len(self._lost) < NAMED:
            self._lost.append((line, problem))
        else:
            self._more += 1

    def run(self, event: Event, size: int) -> None:
        """Let the run event in, without the fields that cannot be used. size: bytes of its line."""
        self._spare += CELLS * size
        kept: Event = {}
        flags: list[str] = []
        for name, value in event.items():
            column = FIELDS["run"].get(name)
            try:
                kept[name] = plain(value, flags, name) if column is None else check(column, value, flags, name)
            except Damaged as why:
                self.note(1, f"{why}; {name} left out")
        for name in flags:
            self.note(1, f"{name} is not finite; null instead")
        self._models, self._prompt = kept.get("models") or [], len(kept.get("prompt_ids") or ())
        self.log.append(kept)

    def enter(self, event: Any, size: int, line: int) -> None:
        """Let an event in, or name the line it stood in. size: bytes of that line."""
        self._spare += CELLS * size
        flags: list[str] = []
        try:
            self._waiting.append((line, self._looked_at(event, size, line, flags), flags))
        except Damaged as why:
            self.note(line, str(why))
        if len(self._waiting) >= BATCH:
            self._let_in()

    def close(self) -> None:
        """All events are in."""
        self._let_in()
        self.dropped = [f"line {line}: {problem}" for line, problem in sorted(self._lost)]
        self.dropped += [f"and {self._more} more"] if self._more else []

    def _let_in(self) -> None:
        """Let those in that wait, where their values are as declared or can be mended."""
        plainly = fit(self._heap, self._known)
        for line, event, flags in self._waiting:
            try:
                if not plainly:
                    for name, value in event.items():
                        event[name] = self._mended(event, name, value, flags)
            except Damaged as why:
                self.note(line, str(why))
                continue
            self.log.append(event)
            if event["type"] == "round":
                self._last = event
            if flags and event.get("round") == self._last.get("round"):
                self._last["flags"] = list(dict.fromkeys([*self._last.get("flags", ()), *flags]))
        self._waiting = []
        for values in self._heap.values():
            values.clear()

    # -- the form of an event -----------------------------------------------------------------------------------

    def _looked_at(self, event: Any, size: int, line: int, flags: list[str]) -> Event:
        """The event; its values are on the heap, or checked where they are of no type that goes there."""
        if type(event) is not dict or type(event.get("type")) is not str:
            raise Damaged("not an event")
        kind = event["type"]
        if kind == "run":
            raise Damaged("another run begins; its rounds belong into a file of their own")
        types = TYPES.get(kind)
        if types is None:  # of a later version: kept as it is
            return plain(event, flags, kind)
        for name, allowed in REQUIRED[kind]:
            if type(event.get(name)) not in allowed:
                raise Damaged(f"{kind} event without {'a round number' if name == 'round' else name}")
        if kind == "round":
            self._in_order(event, size)
            if None in event.values():
                event = {name: value for name, value in event.items() if value is not None}
        claimed, name, odd = "", "", []
        try:
            for name, value in event.items():
                type_ = types.get(name)
                if type_ in SCALARS:
                    self._heap[type_].append(value)
                elif type_ == "columns":
                    if self._is_odd_group(name, value):
                        odd.append(name)
                elif type_ == "layers":
                    claimed = self._look_at_caches(value)
                elif name == "ms" and type(value) is dict:
                    self._few(value)
                    self._heap["float"] += value.values()
                elif type_ in ("runs", "place"):
                    self._pay(run_length(value, name))
                elif name != "type":
                    odd.append(name)
        except Damaged as why:
            raise Damaged(f"{_called(event)} has damaged {name}: {why}") from None
        if claimed:
            self.note(line, f"{_called(event)} claims {claimed}: its cache is left out")
            del event["cache"]
        for name in odd:
            event[name] = self._mended(event, name, event[name], flags)
        return event

    def _in_order(self, event: Event, size: int) -> None:
        number, index, tokens = event["round"], event["index"], event.get("tokens") or {}
        if number <= self._round:
            raise Damaged(f"round {number} comes again, or too late")
        if index < self._index:
            raise Damaged(f"round {number} has token {index} again")
        emitted = event.get("emitted") or 0
        ids = tokens.get("token_id", []) if type(tokens) is dict else None
        if type(ids) is not list or len(ids) != emitted:
            raise Damaged(f"round {number} has damaged tokens: not as many as were emitted")
        for name in COUNTED:
            if type(event.get(name)) is int and event[name] > LISTED + size:
                raise Damaged(f"round {number} has damaged {name}: more than it can list")
        self._round, self._index = number, index + len(ids)

    def _is_odd_group(self, group: str, packed: Any) -> bool:
        """Look at the columns of a group as `packing.pack` writes them: whether one is no column of the schema."""
        if type(packed) is not dict:
            raise Damaged("no columns")
        if not packed:
            return False
        heap, types, odd, scalars = self._heap, TYPES_IN_GROUPS[group], False, SCALARS
        key, counts = packed.get(KEYS[group]), packed.get("runs")
        if type(key) is not list:
            raise Damaged(f"{KEYS[group]} is missing")
        if counts is not None and (type(counts) is not list or set(map(type, counts)) != {int} or min(counts) < 1):
            raise Damaged("runs are no counts")
        n = sum(counts) if counts else len(key)
        self._pay(n * len(types))
        for name in NEEDED[group]:
            if name not in packed:
                raise Damaged(f"{name} is missing")
        for name, values in packed.items():
            type_ = types.get(name)
            if type(values) is list:
                if len(values) != n and name != "runs":
                    if counts is None or len(values) != len(counts):
                        raise Damaged(f"{name} is of unequal length")
                    if type_ not in SCALARS or type_ == "text":
                        self._pay(sum(_weight(value) * count for value, count in zip(values, counts, strict=True)))
                if type_ in heap:
                    heap[type_] += values
                else:
                    odd = True
            elif type_ in scalars and (type_ != "text" or values is None):
                heap[type_].append(values)
            elif type_ is None:
                odd = True
            else:
                raise Damaged(f"{name} is no list")
        if group == "drafts" and (set(map(type, key)) != {int} or len(set(key)) < n or min(key) < 1):
            raise Damaged("the nodes are no numbers from 1, each once")
        if group == "prompt" and n + 1 != self._prompt:
            raise Damaged("not one for every token of the prompt but the first")
        return odd

    def _look_at_caches(self, caches: Any) -> str:
        """Look at columns over layers by role. Returns what they claim where that is more than the bytes allow."""
        if type(caches) is not dict:
            raise Damaged("no mapping of roles")
        self._few(caches)
        heads = 0
        for role, packed in caches.items():
            if type(packed) is not dict:
                raise Damaged(f"{role} has no columns")
            n, many = self._over[role] if role in self._over else self._size_of(role, packed)
            for name, values in packed.items():
                type_ = TYPES_OVER_LAYERS.get(name)
                if type_ is None:
                    self._few([name])
                    packed[name] = short(values, [], name) if type(values) is not list else plain(values, [], name)
                elif type(values) is not list:
                    self._heap[type_].append(values)
                elif len(values) == n:
                    self._heap[type_] += values
                else:
                    raise Damaged(f"{role}.{name} is not over {n} layers")
            heads += many
        cells = heads * len(TABLES["bits"])
        if cells > self._spare or (self._cached + 1) * self._layers * len(LAYERS) > self._spare:
            return "more layers and heads than the file's bytes allow"
        self._cached += 1
        self._spare -= cells
        return ""

    def _size_of(self, role: str, packed: dict[str, Any]) -> tuple[int, int]:
        """Layers and KV heads of a model's cache: as the run says, else as many as there are values."""
        facts = next((one for one in self._models if role in (one.get("role"), one.get("name"))), {})
        n = facts.get("layers") or max((len(values) for values in packed.values() if type(values) is list), default=1)
        each = facts.get("kv_heads") or 1
        if type(each) is list and len(each) != n:
            raise Damaged(f"{role} has {len(each)} layers or {n}")
        size = n, sum(each) if type(each) is list else n * each
        self._layers += n
        if facts.get("layers"):
            self._over[role] = size
        return size

    # -- its values, one column after the other -----------------------------------------------------------------

    def _mended(self, event: Event, name: str, value: Any, flags: list[str]) -> Any:
        """A field with all numbers finite. Raises Damaged where it is not as declared."""
        column = FIELDS.get(event["type"], {}).get(name)
        try:
            if name == "type" or event["type"] not in FIELDS:
                return value
            if column is None:
                self._few([name])
                return plain(value, flags, name)
            if column.type == "columns":
                return {key: self._column(GROUPS[name], key, values, flags, name) for key, values in value.items()}
            if column.type == "layers":
                return {
                    role: {key: self._column(LAYERS, key, values, flags, f"cache.{role}") for key, values in of.items()}
                    for role, of in value.items()
                }
            value = check(column, value, flags, name)
            if column.type == "mapping":
                self._few(value or ())
            self._meet(column, [value])
        except Damaged as why:
            raise Damaged(f"{_called(event)} has damaged {name}: {why}") from None
        return value

    def _column(self, known: dict[str, Column], name: str, values: Any, flags: list[str], group: str) -> Any:
        """The values of a column: a list, or the one value that all rows have."""
        column, where, listed = known.get(name), f"{group}.{name}", type(values) is list
        if name == "runs" or (name == "chain" and type(values) is bool):
            return values
        if column is None:
            self._few([name])
            return plain(values, flags, where) if listed else short(values, flags, where)
        values = values_of(column, values if listed else [values], flags, where)
        self._meet(column, values)
        return values if listed else values[0]

    def _meet(self, column: Column, texts: list) -> None:
        """Remember short texts that came in; of names, only so many different ones may."""
        if column.type == "name":
            self._few([text for text in texts if text is not None])
        if column.type in ("name", "short") and len(self._known) < REMEMBERED:
            self._known.update(texts)

    def _few(self, names: Iterable[str]) -> None:
        """Count the different names of a file: each is a line, a bar or a column somewhere."""
        if not self._names.issuperset(names):
            if len(self._names.union(names)) > NAMES:
                raise Damaged(f"the file has more than {NAMES} different names")
            if any(writable(name) != name for name in names):
                raise Damaged("a name holds lone surrogates")
            self._names.update(names)

    def _pay(self, cells: int) -> None:
        if cells > self._spare:
            raise Damaged("more than the file's bytes allow")
        self._spare -= cells


def _called(event: Event) -> str:
    return f"round {event['round']}" if event["type"] == "round" else f"{event['type']} event"


def _weight(value: Any) -> int:
    """What it costs, in cells, to write a value once more."""
    return len(value) // 8 if type(value) is str else 16 if type(value) is list else 0
