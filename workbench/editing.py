"""Editing the text of a session, and reading several contexts apart: what is read is kept in the caches.

The tokens of the old and the new text are compared; a block of `LEAST` tokens or more that is in both is kept, turned
to where it lies now (`workbench.cache.splice`). The last token is always read, so the next-token distribution is new.
"""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from os import PathLike
from pathlib import Path
from typing import Any

from workbench.cache import saved
from workbench.cache.managed import ManagedStore
from workbench.cache.rotation import Rotation, rotation_of
from workbench.cache.splice import restored, spliced
from workbench.cache.store import PlainStore
from workbench.decoders import Decoder
from workbench.engine.model import LanguageModel, kept
from workbench.engine.prompt import Prompt, encode_prompt, need_tokenizer
from workbench.engine.settings import Settings, make_settings
from workbench.errors import BadInput, Unsupported, shown
from workbench.provenance import run_event
from workbench.rounds import Runner, State
from workbench.rounds.state import Contexts
from workbench.trace import Recorder

Session = Any  # a `Session`, which has these methods
LEAST = 8  # tokens of a block that is worth keeping behind an edit


class Edits:
    """What a session does with the text and the caches that it has."""

    def edit(self, text: Prompt, *, out: str | Path | None = None, **changes: Any) -> Session:
        """A branch for the text as it should be: the prompt and the new text up to the cursor, edited anywhere.

        Its prompt is that text. What stays of the old one is not read again: see `workbench.editing`. So it is lossy
        behind an edit; `recomputed()` gives the same session with everything read.

        text: as a prompt. changes: other settings from there on.
        Raises BadInput where a setting does not fit, or the cache does not keep tokens as they are; Unsupported where
        tokens move and the model's keys do not turn with position.
        """
        with self._lock:
            return edited(self, text, out, changes)

    def attach(
        self,
        contexts: Sequence[str | Sequence[int]],
        then: str | Sequence[int],
        *,
        temperature: float = 0.9,
        scale: float = 0.9,
        out: str | Path | None = None,
        **changes: Any,
    ) -> Session:
        """A branch that has read contexts apart, each behind the text up to the cursor, and goes on with `then`.

        No context sees another, so their order changes nothing, and each costs what it costs alone. In the text, the
        longest takes the place of all. One context at temperature 1 and scale 1 is plain decoding of the same text.

        contexts, then: texts or token ids. temperature, scale: scores of the contexts are divided by `temperature`, and
        the log-sum-exp of all is multiplied by `scale` · `temperature`, before it is weighed against the rest.
        changes: other settings from there on. Raises BadInput where something does not fit, Unsupported where the model
        reads one sequence at a time.

        Source: "APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding"
        (https://arxiv.org/abs/2502.05431; https://github.com/Infini-AI-Lab/APE).
        """
        with self._lock:
            return attached(self, contexts, then, temperature, scale, out, changes)

    def save_cache(self, path: str | Path) -> None:
        """Write what the target's cache holds, all or nothing, for `Session(…, cached=path)` of the same model.

        BadInput where it cannot be written, nothing is cached yet, or the cache does not keep tokens as they are.
        """
        with self._lock:
            keep(self.state, path)

    def recomputed(self, *, out: str | Path | None = None, **changes: Any) -> Session:
        """A session of the same prompt, decoder and settings that has read nothing yet. changes: other settings."""
        settings = make_settings(self.lm, self.settings, **{"force": self._given, **changes})
        contexts = self.state.runners["target"].contexts

        def carry(role: str, runner: Runner) -> None:
            runner.contexts = contexts if role == "target" else None

        return begun(self, self.prompt_ids, self.prompt, settings, out, carry)


def blocks_of(old: list[int], new: list[int]) -> list[tuple[int, int, int]]:
    """What two texts have in common, as (start, stop, to) in order; the last token of the new one is in none."""
    found = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    cut = ((one.a, one.a + min(one.size, len(new) - 1 - one.b), one.b) for one in found)
    return [(start, stop, to) for start, stop, to in cut if stop - start >= (LEAST if to else 1)]


def edited(session: Session, text: Prompt, out: str | Path | None, changes: dict[str, Any]) -> Session:
    """See `Session.edit`."""
    settings, old = _settings(session, "edit", changes), _ids(session)
    ids, words = encode_prompt(session.lm, text)
    before, blocks = session.state, blocks_of(old, ids)  # at the tip: its caches hold the text up to any cursor
    held = before.runners["target"].store.length
    kept = [[start, min(stop, held) - start, to] for start, stop, to in blocks if start < held]
    facts = {"edited": {**_origin(session), "kept": kept}}
    return begun(session, ids, words, settings, out, lambda *runner: _carry("edit", before, *runner, blocks), facts)


def attached(
    session: Session, contexts: Sequence[str | Sequence[int]], then: str | Sequence[int], temperature: float,
    scale: float, out: str | Path | None, changes: dict[str, Any]
) -> Session:  # fmt: skip
    """See `Session.attach`."""
    lm, settings, old = session.lm, _settings(session, "attach", changes), _ids(session)
    if isinstance(contexts, str) or not isinstance(contexts, Sequence) or not contexts:
        raise BadInput(f"attach: expected a list of contexts, texts or token ids, got {shown(contexts)}")
    for name, value in (("temperature", temperature), ("scale", scale)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10:
            raise BadInput(f"attach: {name}: expected a number above 0, at most 10, got {shown(value)}")
    if not lm.bundles:
        raise Unsupported(f"attach: {lm.name!r} reads one sequence at a time")
    apart = Contexts(len(old), tuple(tuple(_part(lm, "context", one)) for one in contexts), temperature, scale)
    ids, words = encode_prompt(lm, [*old, *max(apart.ids, key=len), *_part(lm, "then", then)])
    before, whole = session.state, [(0, len(old), 0)]

    def carry(role: str, runner: Runner) -> None:
        _carry("attach", before, role, runner, whole)
        runner.contexts = apart if role == "target" else None

    facts = {"at": apart.at, "contexts": apart.ids, "temperature": temperature, "scale": scale}
    return begun(session, ids, words, settings, out, carry, {"attached": {**_origin(session), **facts}})


def restore(state: State, path: str | PathLike) -> dict[str, Any]:
    """Give the target of a state what a saved cache holds of its prompt; what the trace says of that."""
    target, ids = state.runners["target"], state.tokens
    if type(target.store) is not PlainStore:
        raise BadInput("cached: a cache stack evicts or quantizes tokens; expected cache=None")
    target.model.forward([ids[0]], [0], trial := target.model.new_store(), logits_at=())
    trial.commit([0])
    found = saved.load(path, target.model.describe(), trial)
    pairs = zip(found.ids, ids[:-1], strict=False)
    count = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(found.ids), len(ids) - 1))
    if not count:
        raise BadInput(f"cached={shown(str(path))} holds none of this prompt's tokens; it begins with another")
    k, v = ([x.to(target.model.device) for x in part] for part in (found.k, found.v))
    target.store = restored(k, v, count)
    return {"edited": {"kept": [[0, count, 0]]}}


def _part(lm: LanguageModel, what: str, part: str | Sequence[int]) -> list[int]:
    """The ids of a part of a text, without what a tokenizer puts before a whole one; at least one."""
    if isinstance(part, str):
        need_tokenizer(lm, f"attach: {what}", part)
        part = lm.tokenizer.encode(part, add_special_tokens=False)
    if isinstance(part, Sequence) and not part:
        raise BadInput(f"attach: {what} is empty; expected text or token ids")
    return encode_prompt(lm, part)[0]


def _settings(session: Session, what: str, changes: dict[str, Any]) -> Settings:
    """The settings of a session whose caches are taken from another. Raises BadInput where they cannot be."""
    settings = make_settings(session.lm, session.settings, **{"force": {}, **changes})
    refuse_reading(session.decoder, settings, what)
    return settings


def refuse_reading(decoder: Decoder, settings: Settings, what: str) -> None:
    """Raise BadInput where somebody has to see the target read the whole prompt."""
    if settings.prompt_rows:
        raise BadInput(f"{what}: prompt_rows asks for distributions of a prompt that is not read again: leave it unset")
    if needs := getattr(decoder.observer(), "needs", ()):
        names = ", ".join(sorted(map(str, needs)))
        raise BadInput(f"{what}: the drafter {decoder.drafter.declared_name} watches the target read its prompt"
                       f" ({names}); choose another drafter, or read the whole text anew")  # fmt: skip


def keep(state: State, path: str | PathLike) -> None:
    """Write the cache of a state's target."""
    target = state.runners["target"]
    if not isinstance(target.store, PlainStore) or isinstance(target.store, ManagedStore):
        raise BadInput("save_cache: a cache stack evicts or quantizes tokens; expected cache=None")
    if target.contexts is not None or not target.store.length:
        why = "contexts are attached, which lie side by side" if target.contexts else "nothing is cached yet: step once"
        raise BadInput(f"save_cache: {why}")
    if target.inexact is not None:
        raise BadInput("save_cache: the cache was read behind another text; save that of recomputed()")
    saved.save(path, target.store, state.tokens, target.model.describe())


def _ids(session: Session) -> list[int]:
    """The text up to the cursor."""
    return [*session.prompt_ids, *session.trace.token_ids[: session.place.token]]


def _origin(session: Session) -> dict[str, Any]:
    return {"trace": session.trace.id, "round": session.place.round, "index": session.place.token}


def begun(
    session: Session,
    ids: list[int],
    words: str,
    settings: Settings,
    out: str | Path | None = None,
    carry: Callable[[str, Runner], None] | None = None,
    facts: dict[str, Any] | None = None,
) -> Session:
    """A session of these tokens under the decoder of another. carry: gives runners what is read already; facts: what
    the trace says of that."""
    state = session.decoder.start(session.lm, ids, settings)
    for role, runner in state.runners.items() if carry else ():
        carry(role, runner)
    run = run_event(state, session.decoder, words) | (facts or {})
    new = object.__new__(type(session))
    new.lm, new.decoder, new.settings = session.lm, session.decoder, settings
    new.prompt, new.prompt_ids = words, ids
    new._begin(state, Recorder(run, out, settings.level), parent=None)
    return new


def _carry(what: str, before: State, role: str, runner: Runner, blocks: list[tuple[int, int, int]]) -> None:
    """Give a runner what the same model has read of the old text."""
    source = before.runners.get(role)
    if source is None or (source.model, source.prompt) != (runner.model, runner.prompt) or runner.prompt is not None:
        return
    if type(runner.store) is not PlainStore or isinstance(source.store, ManagedStore):
        raise BadInput(f"{what}: a cache stack evicts or quantizes tokens; expected cache=None")
    if source.contexts is not None:
        raise BadInput(f"{what}: contexts are attached, which lie side by side; {what} before attach")
    if source.store.kept:
        raise BadInput(f"{what}: nothing of this text has been read yet; step once first")
    runner.store = spliced(source.store, blocks, lambda: _rotation(runner.model))


def _rotation(lm: LanguageModel) -> Rotation:
    return kept(lm, ("rotation",), lambda: rotation_of(lm, "edit", "recomputed(), which reads the whole text"))
