"""What a cache is made of: at most one policy, one quantizer and one reader, in this order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.cache.codecs.base import Quantizer
from workbench.cache.codecs.paged import Paged
from workbench.cache.plan import CacheMethod
from workbench.cache.protocol import MANY
from workbench.cache.readers.base import CacheReader
from workbench.declare import Declared, build, describe, get, names, register, setting
from workbench.errors import BadInput, Unsupported, shown
from workbench_kernels.pages import ALIGN

if TYPE_CHECKING:
    from workbench.cache.managed import ManagedStore

PARTS = ("policy", "quantizer", "reader")
ORDER = ("a cache evicts first, quantises what stays, and reads of that; put the policy before the quantizer, and the "
         "reader last")  # fmt: skip
NEEDS = {"mass": "attention", "queries": "the queries of rows"}


@register("cache", "stack")
@dataclass(frozen=True)
class Stack(Declared):
    """First the policy drops tokens, then the quantizer stores what stays in fewer bits; the reader chooses which pages
    of that each row reads.

    The first two act at fixed committed lengths only. No forward may reach beyond the next of them, and each row reads
    what it would read alone, so the text does not depend on how many tokens a forward held: speculative output under a
    stack is plain output under that stack.
    """

    policy: CacheMethod | None = setting(None, family="policy", help="which tokens stay (default: all)")
    quantizer: Quantizer | None = setting(None, family="quantizer", help="how they are stored (default: as they are)")
    reader: CacheReader | None = setting(None, family="reader", help="what of them each row reads (default: all)")
    during_prompt: bool = setting(True, help="act while the prompt goes in, not only from its end on")
    requantize: str = setting(
        "sparse", choices=("sparse", "never"), help="whether pages that lost half their slots are quantized anew"
    )

    def __post_init__(self) -> None:
        found = [getattr(getattr(self, name), "family", name) for name in PARTS]
        if set(found) <= set(PARTS) and found != list(PARTS):
            raise BadInput(ORDER)
        super().__post_init__()
        policy, quantizer = self.policy, self.quantizer
        if not self.members:
            raise BadInput("Stack(): expected a policy, a quantizer, a reader or several; cache=None keeps every token "
                           "as it is")  # fmt: skip
        if self.reader is not None and policy is not None and "slot_positions" in policy.needs:
            raise BadInput(f"{policy.declared_name} with positions='slot' turns keys as they are read, and "
                           f"{self.reader.declared_name} reads pages: use positions='baked'")  # fmt: skip
        if policy is not None and policy.ragged and "slot_positions" in policy.needs:
            raise BadInput(f"{policy.declared_name} keeps different numbers of slots by head, and turns keys as they "
                           "are read: that is not possible in pages")  # fmt: skip
        if self.reader is not None and policy is not None and policy.reads:
            raise BadInput(f"{policy.declared_name} and {self.reader.declared_name} both choose what is read: give one "
                           "of them")  # fmt: skip
        if policy is None or quantizer is None:
            return
        if "slot_positions" in policy.needs:
            raise BadInput(f"{policy.declared_name} with positions={policy.positions!r} turns keys as they are read; "
                           "that is not possible in quantized pages: use positions='baked'")  # fmt: skip
        if "mass" in policy.needs & quantizer.needs and not policy.watches(0, MANY):
            raise BadInput(f"{policy.declared_name} reads the attention of a window, {quantizer.declared_name} that of "
                           "all rows: use another policy, or KIVI")  # fmt: skip
        if policy.newest < quantizer.residual:
            raise BadInput(f"{policy.declared_name} keeps its newest {policy.newest} tokens only, and "
                           f"{quantizer.declared_name} holds back {quantizer.residual}: lower residual")  # fmt: skip

    @property
    def members(self) -> list[Declared]:
        """In order, those that there are."""
        return [member for name in PARTS if (member := getattr(self, name)) is not None]

    @property
    def storage(self) -> Quantizer | None:
        """How older tokens are stored in pages: as the quantizer says, or as they are where heads keep different
        numbers of slots, or a reader chooses pages; None without pages."""
        policy = self.policy
        if self.quantizer is None and (self.reader is not None or policy.ragged):
            return Paged(residual=0 if policy and policy.newest < Paged.page_size else Paged.page_size)
        return self.quantizer

    def residual(self, length: int) -> int:
        """How many of the newest tokens stay out of the pages at a boundary."""
        held = self.storage.residual
        rest = (length - held) % self.storage.interval
        if self.policy is None:
            return held + rest
        if not self.during_prompt:  # the prompt ends anywhere: pages stay full where the policy keeps enough
            held = max(held, min(held + rest, self.policy.newest))
        return held

    def next(self, length: int, prompt: int) -> int | None:
        """The first committed length above `length` at which a member acts; None if never again."""
        found = [self.policy_next(length, prompt)] if self.policy else []
        found += [self._due(partial(self._checked, self.storage), length, prompt)] if self.storage else []
        return min((at for at in found if at is not None), default=None)

    def limit(self, length: int, prompt: int) -> int | None:
        """The committed length that no chain of rows from `length` on may pass: the next boundary, or the prompt's end
        where nothing but quantizing is due before: rows behind a boundary then read its pages as they are staged."""
        at = self.next(length, prompt)
        if self.policy is not None or at is None or length >= prompt:
            return at
        storage = self.storage
        usual = type(storage).next is Quantizer.next and not storage.needs
        whole = not storage.interval % storage.page_size and not storage.residual % storage.interval
        return max(at, prompt) if usual and whole else at

    def watches(self, position: int, prompt: int) -> bool:
        """Whether the attention of the row at a position counts."""
        policy, quantizer = self.policy, self.quantizer
        return bool(policy and policy.watches(position, prompt)) or bool(quantizer and "mass" in quantizer.needs)

    def acts(self, length: int, prompt: int) -> bool:
        """Whether the policy acts at this committed length."""
        return self.policy is not None and self.policy_next(length - 1, prompt) == length

    def quantizes(self, length: int, prompt: int) -> bool:
        """Whether it is the quantizer's turn at this committed length."""
        return self._due(self.storage.next, length - 1, prompt) == length

    def policy_next(self, length: int, prompt: int) -> int | None:
        """The first committed length above `length` at which the policy acts; None if never again."""
        return self._due(lambda length: self._checked(self.policy, length, prompt), length, prompt)

    @staticmethod
    def _checked(member: Any, length: int, *prompt: int) -> int | None:
        at = member.next(length, *prompt)
        if at is not None and (not isinstance(at, int) or at <= length):
            raise BadInput(f"{member.family} {member.declared_name}: next({length}) answered {at!r}; expected a later "
                           "committed length, or None if it never acts again")  # fmt: skip
        return at

    def _due(self, after: Callable[[int], int | None], length: int, prompt: int) -> int | None:
        """A member's boundary behind a length; those inside the prompt are put off to its end, unless the stack acts
        during the prompt."""
        if not self.during_prompt and length < prompt and (first := after(0)) is not None and first <= prompt:
            return prompt
        return after(length)

    def new_store(self, lm: Any, prompt: int) -> "ManagedStore":
        """An empty cache of one sequence for a model; `prompt`: tokens of its prompt.

        Raises Unsupported, before any work, where the model cannot give what a member needs.
        """
        from workbench.cache.managed import ManagedStore
        from workbench.cache.rotation import rotation_of

        for member in self.members:
            for need in ("mass", "queries"):
                if need in member.needs - lm.gives:
                    raise Unsupported(f"{member.declared_name} reads {NEEDS[need]}, which {lm.name!r} does not give")
        turning = None
        if self.storage and self.storage.raw_keys:
            turning = rotation_of(lm, "raw_keys=True", "raw_keys=False")
        if self.storage:
            for layer in range(lm.layers):
                for codec in self.storage.codecs(layer, lm.head_dim, lm.head_dim, lm.dtype, turning):
                    if codec.slots != self.storage.page_size or codec.bytes % ALIGN:
                        raise BadInput(f"quantizer {self.storage.declared_name}: codecs() answered pages of "
                                       f"{codec.slots} slots and {codec.bytes} bytes; expected "
                                       f"{self.storage.page_size} slots and a multiple of {ALIGN} bytes")  # fmt: skip
        if self.policy and "slot_positions" in self.policy.needs:
            turning = rotation_of(lm, f"positions={self.policy.positions!r}", "positions='baked'")
        marks = self.policy.marks(lm) if self.policy and "marks" in self.policy.needs else None
        return ManagedStore(lm.layers, self, prompt, turning, marks)


def as_stack(value: Any) -> Stack | None:
    """A stack from what `cache=` takes: None, a policy, a quantizer, a reader, a name, a list of these in order, or a
    stack."""
    if value is None or isinstance(value, Stack):
        return value
    members = [
        _member(part) for part in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])
    ]
    chosen: dict[str, Any] = {}
    for member in members:
        if member.family in chosen:
            raise BadInput(f"cache: two of the family {member.family}; expected at most one policy, one quantizer and "
                           "one reader")  # fmt: skip
        if chosen and PARTS.index(member.family) < max(map(PARTS.index, chosen)):
            raise BadInput(ORDER)
        chosen[member.family] = member
    return Stack(**chosen)


def stack_of(members: Sequence[str], values: Mapping[str, Any]) -> Stack | None:
    """A stack from the names of its members, in order, and parameters: `budget`, or `h2o.budget` where two have it, and
    those of the stack itself.

    Raises BadInput where a parameter belongs to none of them, or to several.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in members}
    known = {name: {entry.name for entry in describe(get(family_of(name), name))} for name in members}
    own = {entry.name: None for entry in describe(Stack) if entry.kind != "member"}
    for key, value in values.items():
        if key in own and members:
            own[key] = value
            continue
        owner, _, rest = key.partition(".")
        fits = [owner] if rest and owner in known else [name for name in known if key in known[name]]
        if len(fits) != 1:
            what = "names a parameter of several" if fits else "is a parameter of none"
            raise BadInput(f"cache.{key} {what} of the cache's members ({', '.join(members) or 'no --cache given'})")
        chosen[fits[0]][rest if fits == [owner] and rest else key] = value
    stack = as_stack([build(family_of(name), name, chosen[name]) for name in members]) if members else None
    own = {key: value for key, value in own.items() if value is not None}
    if not own:
        return stack
    parts = {part.family: part for part in stack.members}
    return build("cache", "stack", {**parts, **own})


def _member(part: Any) -> Any:
    if isinstance(part, str):
        return build(family_of(part), part)
    if getattr(part, "family", None) not in PARTS or isinstance(part, type):
        known = ", ".join(f"a {family} ({', '.join(names(family))})" for family in PARTS)
        raise BadInput(f"cache: expected {known}, or several in a list; got {shown(part)}")
    return part


def family_of(name: str) -> str:
    """The family that a member of a cache belongs to; BadInput where there is none of that name."""
    for family in PARTS:
        if name in names(family):
            return family
    raise BadInput(f"unknown cache {name!r}; known: {', '.join(name for family in PARTS for name in names(family))}")
