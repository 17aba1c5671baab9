"""The door of a trace: what a file holds is checked here once, by the schema, and never again.

What came in keeps to `schema.py`: types, ids, finite numbers (others are null and named in the round's `flags`),
columns of equal length, rounds and tokens in order. A column that is declared there is checked; what is not has to be
plain JSON. And it costs what its bytes allow: the tables of a file have at most `FREE` cells and `CELLS` for each of
its bytes, however many layers, heads or positions it claims.
"""

from collections.abc import Iterable
from typing import Any

from workbench.trace import schema_1
from workbench.trace.forms import SCALARS, Damaged, check, plain, run_length, short, values_of, writable
from workbench.trace.schema import DERIVED, EVENTS, KEYS, NAMES, TABLES, Column

__all__ = ["Door"]

Event = dict[str, Any]
CELLS, FREE = 16, 2**21  # cells of tables for a byte of the file, and those that any file may have
LISTED = 4096  # what a round may count beyond the bytes of its line
COUNTED = ("drafted", "accepted", "emitted", "depth")
NAMED = 100  # lines that are named one by one where they had to be dropped
FIELDS = {kind: {c.name: c for c in columns} for kind, columns in EVENTS.items()}
REQUIRED = {kind: [(c.name, SCALARS[c.type][0]) for c in of.values() if c.required] for kind, of in FIELDS.items()}
GROUPS = {name: {c.name: c for c in TABLES["tokens" if name == "prompt" else name]} for name in KEYS}
NEEDED = {name: [c.name for c in of.values() if c.required and c.name not in DERIVED] for name, of in GROUPS.items()}
NEEDED |= {"prompt": ["token_id", "text"], "canvas": ["position"], "forwards": ["phase"]}
LAYERS = {c.name: c for c in TABLES["cache"]}


class Door:
    """Lets the events of one file in: the run by `run`, then the others by `enter`.

    log: those that are in, the run first.
    """

    def __init__(self) -> None:
        self.log: list[Event] = []
        self._lost: list[str] = []  # about the first things that had to stay outside
        self._more = 0  # how many others
        self._spare = FREE  # cells that the bytes so far allow, and no table has taken
        self._old = False  # the file is of schema 1
        self._models: list[Event] = []
        self._prompt = 0
        self._round, self._index = -1, 0  # the last round looked at, and the index of the next token
        self._last: Event = {}  # the last round let in
        self._over: dict[str, tuple[int, int]] = {}  # role -> layers and heads of its cache, where the run says so
        self._layers = 0  # of all caches
        self._cached = 0  # rounds with a cache
        self._names: set[str] = set()

    @property
    def dropped(self) -> list[str]:
        """A line about each thing that had to stay outside."""
        return [*self._lost, *([f"and {self._more} more"] if self._more else [])]

    def note(self, line: int, problem: str) -> None:
        """Name what had to stay outside; of very many, how many."""
        if len(self._lost) < NAMED:
            self._lost.append(f"line {line}: {problem}")
        else:
            self._more += 1

    def run(self, event: Event, size: int) -> None:
        """Let the run event in, without the fields that cannot be used. size: bytes of its line."""
        self._spare += CELLS * size
        kept: Event = {}
        flags: list[str] = []
        self._old = event["schema"] == 1
        for name, value in (schema_1.current_run(event) if self._old else event).items():
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
            if self._old:
                layers = {one.get("role"): one.get("layers") for one in self._models}
                event = schema_1.current(event, layers, self._pay)
            event = self._checked(event, size, line, flags)
        except Damaged as why:
            self.note(line, str(why))
            return
        self.log.append(event)
        if event["type"] == "round":
            self._last = event
        if flags and event.get("round") == self._last.get("round"):
            self._last["flags"] = list(dict.fromkeys([*self._last.get("flags", ()), *flags]))

    def _checked(self, event: Any, size: int, line: int, flags: list[str]) -> Event:
        """An event with all numbers finite. Raises Damaged where it is not as declared."""
        if type(event) is not dict or type(event.get("type")) is not str:
            raise Damaged("not an event")
        kind = event["type"]
        if kind == "run":
            raise Damaged("another run begins; its rounds belong into a file of their own")
        columns = FIELDS.get(kind)
        if columns is None:  # of a later version: kept as it is
            return plain(event, flags, kind)
        for name, allowed in REQUIRED[kind]:
            if type(event.get(name)) not in allowed:
                raise Damaged(f"{kind} event without {'a round number' if name == 'round' else name}")
        if kind == "round":
            self._in_order(event, size)
            event = {name: value for name, value in event.items() if value is not None}
        kept: Event = {}
        for name, value in event.items():
            try:
                if name == "cache" and kind == "round" and (claimed := self._claimed(value)):
                    self.note(line, f"{_called(event)} claims {claimed}: its cache is left out")
                    continue
                kept[name] = value if name == "type" else self._field(columns.get(name), name, value, flags)
            except Damaged as why:
                raise Damaged(f"{_called(event)} has damaged {name}: {why}") from None
        return kept

    def _field(self, column: Column | None, name: str, value: Any, flags: list[str]) -> Any:
        if column is None:
            self._few([name])
            return plain(value, flags, name)
        if column.type == "columns":
            return self._group(name, value, flags)
        if column.type == "layers":
            return {role: self._over_layers(role, packed, flags) for role, packed in value.items()}
        if column.type in ("runs", "place"):
            self._pay(run_length(value, name))
        value = check(column, value, flags, name)
        if column.type in ("name", "mapping"):
            self._few([value] if column.type == "name" else value or ())
        return value

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

    def _group(self, group: str, columns: Any, flags: list[str]) -> Event:
        """The columns of a table, lists of one length."""
        if type(columns) is not dict:
            raise Damaged("no columns")
        for name in NEEDED[group] if columns else ():
            if type(columns.get(name)) is not list:
                raise Damaged(f"{name} is {'no list' if name in columns else 'missing'}")
        key, kept = columns.get(KEYS[group], ()), {}
        for name, values in columns.items():
            if type(values) is not list:
                raise Damaged(f"{name} is no list")
            if len(values) != len(key):
                raise Damaged(f"{name} is of unequal length")
            kept[name] = self._column(GROUPS[group].get(name), values, flags, f"{group}.{name}")
        if group == "drafts" and len(set(key)) < len(key):
            raise Damaged("a node comes twice")
        if group == "prompt" and columns and len(key) + 1 != self._prompt:
            raise Damaged("not one for every token of the prompt but the first")
        return kept

    def _column(self, column: Column | None, values: list, flags: list[str], where: str) -> list:
        if column is None:
            self._few([where.partition(".")[2]])
            return plain(values, flags, where)
        values = values_of(column, values, flags, where)
        if column.type == "name":
            self._few(values)
        return values

    def _over_layers(self, role: str, packed: Event, flags: list[str]) -> Event:
        """Columns over layers: lists, or the one value that all layers have."""
        kept = {}
        for name, values in packed.items():
            where, many = f"cache.{role}.{name}", type(values) is list
            found = self._column(LAYERS.get(name), values if many else [short(values, flags, where)], flags, where)
            kept[name] = found if many else found[0]
        return kept

    def _claimed(self, caches: Any) -> str:
        """What columns over layers by role claim, where that is more than the bytes allow."""
        if type(caches) is not dict:
            raise Damaged("no mapping of roles")
        self._few(caches)
        heads = 0
        for role, packed in caches.items():
            if type(packed) is not dict:
                raise Damaged(f"{role} has no columns")
            n, many = self._over[role] if role in self._over else self._size_of(role, packed)
            for name, values in packed.items():
                if type(values) is list and len(values) != n and name in LAYERS:
                    raise Damaged(f"{role}.{name} is not over {n} layers")
            heads += many
        cells = heads * len(TABLES["bits"])
        if cells > self._spare or (self._cached + 1) * self._layers * len(LAYERS) > self._spare:
            return "more layers and heads than the file's bytes allow"
        self._cached += 1
        self._spare -= cells
        return ""

    def _size_of(self, role: str, packed: Event) -> tuple[int, int]:
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

    def _few(self, names: Iterable[str | None]) -> None:
        """Count the different names of a file: each is a line, a bar or a column somewhere."""
        new = [name for name in names if name is not None and name not in self._names]
        if new:
            if len(self._names.union(new)) > NAMES:
                raise Damaged(f"the file has more than {NAMES} different names")
            if any(writable(name) != name for name in new):
                raise Damaged("a name holds lone surrogates")
            self._names.update(new)

    def _pay(self, cells: int) -> None:
        if cells > self._spare:
            raise Damaged("more than the file's bytes allow")
        self._spare -= cells


def _called(event: Event) -> str:
    return f"round {event['round']}" if event["type"] == "round" else f"{event['type']} event"
