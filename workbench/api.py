"""Plain Python first: decode a prompt, compare decoders, plug a decoder into `model.generate`."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench import generation
from workbench.decoders import Decoder
from workbench.engine.bundle import together
from workbench.engine.prompt import Prompt, is_several, prompts_of
from workbench.engine.settings import Settings, refuse_stateful, with_keywords
from workbench.errors import BadInput, shown
from workbench.generation import Batch
from workbench.models.adapter import wrap
from workbench.models.loading import Model
from workbench.session import Session, check_decoder
from workbench.trace import Trace
from workbench.values import bounded


@with_keywords
def decode(
    lm: Model,
    prompt: Prompt | Sequence[Prompt],
    decoder: Decoder | None = None,
    *,
    n: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_round: Callable[[Session], None] | None = None,
    **settings: Any,
) -> Trace | list[Trace]:
    """Decode a prompt to its end and return the trace; of several prompts or samples, the traces.

    Several are decoded side by side, their forwards bundled: the texts are those of the lone runs up to rounding,
    sooner. A prompt that several have is read once, and its cache is shared. Times in their traces are those of the
    shared forwards, not to be added up. Rounds that take place on a GPU alone share the forwards of the prompt only.

    Parameters
    ----------
    lm: a model from `workbench.load`, the name of one, or a transformers model. prompt: text, token ids or chat
    messages, or a list of such prompts. decoder: plain decoding by default. n: how many samples of one prompt; number
    i is what `sample=i` alone gives, counted from the setting `sample`. out: file that the trace of one prompt is
    written to round by round; `overwrite` allows it to exist. on_round: called with the session after every round
    (progress, streaming), of several prompts in turn and in inference mode.
    settings: by keyword, of
        KEYWORDS

    Ctrl-C ends the run as `interrupted` and returns the trace so far. Raises BadInput before any work where something
    does not fit; NumericalError and out-of-memory errors end the trace as `error` and carry it as `.trace`, and all
    traces as `.traces`, where several prompts end with it.
    """
    several = is_several(prompt) or n is not None
    if not several:
        sessions = [Session(lm, prompt, decoder, out=out, overwrite=overwrite, **settings)]
    elif n is None:
        sessions = _several(lm, [(prompt, {}) for prompt in prompts_of(prompt)], decoder, out, settings)
    elif is_several(prompt):
        raise BadInput("n: samples of one prompt; expected one prompt, got a list: decode each with n")
    else:
        n = bounded("n", n, 1, 1024)
        first = bounded("sample", settings.pop("sample", 0), 0, 2**63 - n)
        samples = [(prompt, {"sample": first + i}) for i in range(n)]
        sessions = _several(lm, samples, decoder, out, settings)

    def run(session: Session) -> None:
        while session._compute():
            if on_round is not None:
                on_round(session)

    try:
        _read_prompts(sessions)
        together([partial(run, session) for session in sessions])
    except KeyboardInterrupt:
        for session in sessions:
            session.end("interrupted")
    except Exception as error:
        for session in sessions if several else ():
            if session.trace.end is None:
                with suppress(BadInput):  # where the error is one of writing
                    session.end("interrupted")
        if several:
            error.traces = [session.trace for session in sessions]
        raise
    traces = [session.trace for session in sessions]
    return traces if several else traces[0]


def _several(lm: Model, asked: list[tuple[Prompt, dict]], decoder: Any, out: Any, settings: dict) -> list[Session]:
    """The sessions of several prompts, each with settings of its own; what is refused names the prompt by its
    number."""
    if out is not None:
        raise BadInput("out is one file; for several prompts or samples leave it out, and save each trace")
    sessions = []
    for number, (prompt, own) in enumerate(asked):
        try:
            sessions.append(Session(lm, prompt, decoder, **settings, **own))
        except BadInput as error:
            raise error if own else BadInput(f"prompt {number}: {error}") from None
    if len(sessions) > 1:
        first = sessions[0]
        why = "several prompts are decoded side by side with it"
        refuse_stateful(first.settings.sampling.processors, first.lm.vocab_size, first.lm.device, why)
    return sessions


def _read_prompts(sessions: list[Session]) -> None:
    """Read every prompt that several sessions have, once."""
    groups: dict[tuple, list[Session]] = {}
    for session in sessions:
        groups.setdefault(tuple(session.prompt_ids), []).append(session)
    for first, *others in groups.values():
        if others:
            first.read_prompt(others)


@with_keywords
def stream(
    lm: Model,
    prompt: Prompt,
    decoder: Decoder | None = None,
    *,
    streamer: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Decode one prompt and give its tokens as they come: rows with the columns of the tokens and rounds tables.

        for token in wb.stream(lm, "def add(a, b):", wb.Speculative()):
            print(token["text"], end="", flush=True)

    Parameters
    ----------
    lm, prompt, decoder, out, overwrite: as of `decode`. streamer: a transformers streamer, which gets the prompt, then
    every id as of `generate`. settings: by keyword, of
        KEYWORDS

    Whoever stops reading ends the run as `interrupted`. Raises BadInput before any work where something does not fit.
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise BadInput(f"streamer: expected a transformers streamer, with put and end, got {shown(streamer)}")
    session = Session(lm, prompt, decoder, out=out, overwrite=overwrite, **settings)

    def tokens() -> Iterator[dict[str, Any]]:
        try:
            if streamer is not None:
                streamer.put(torch.tensor([session.prompt_ids]))
            while session._compute():
                for row in session.trace.last_rows():
                    if streamer is not None:
                        streamer.put(torch.tensor([row["token_id"]]))
                    yield row
        finally:
            if streamer is not None:
                streamer.end()
            with suppress(BadInput):  # where the error is one of writing
                if session.trace.end is None:
                    session.end("interrupted")

    return tokens()


class custom_generate:
    """A decoder as `custom_generate` of an untouched transformers model.

        model.generate(**inputs, custom_generate=workbench.custom_generate(workbench.Speculative()))

    Every row of the batch is decoded by itself, forwards bundled, and greedy text is that of `generate` without us.
    `max_new_tokens`, sampling settings, processors, stopping criteria, streamer, end-of-text and pad tokens are those
    of the call; `num_beams` (give `Beam(beams=…)`), assistants, embeddings for prompts and whatever else cannot be
    honoured are refused by name. Row i draws as `decode(…, sample=i)` does. The traces of the last call are in
    `.traces`, one a row.

    Parameters
    ----------
    decoder: plain decoding by default. seed, level, cache, constraint: as in `decode`. tokenizer: for texts in the
    traces, and for a constraint.
    streamer: a transformers streamer, where the call names none.
    """

    def __init__(
        self,
        decoder: Decoder | None = None,
        *,
        seed: int = 0,
        level: str = "default",
        tokenizer: Any = None,
        streamer: Any = None,
        cache: Any = None,
        constraint: Any = None,
    ):
        checked = Settings(seed=seed, level=level, cache=cache, constraint=constraint)  # not in the middle of a call
        self.decoder, self.seed, self.level, self.tokenizer = check_decoder(decoder), seed, level, tokenizer
        self.streamer, self.cache, self.constraint = streamer, checked.cache, checked.constraint
        self.traces: list[Trace] = []

    def __call__(
        self,
        model,
        input_ids: torch.Tensor,
        logits_processor=(),
        stopping_criteria=(),
        generation_config=None,
        **model_kwargs: Any,
    ):
        config = generation_config or model.generation_config
        kept_back = generation.not_handed_on(inspect.currentframe().f_back)
        generation.refuse_unserved(model, input_ids, config, model_kwargs, kept_back)
        streamer = self._streamer(kept_back.get("streamer"), input_ids)
        self._lm = wrap(model, self.tokenizer)  # held, so that the next call finds it made
        most, eos, criteria = generation.ends_of(stopping_criteria or (), config, input_ids.shape[1])
        pad = config.eos_token_id or 0 if config.pad_token_id is None else config.pad_token_id
        batch = Batch(input_ids, model_kwargs, int(pad[0] if isinstance(pad, list | tuple) else pad), most)
        longest = _Rows(self, batch, config, list(logits_processor or ()), criteria, most, eos).decode(streamer)
        sequences = batch.ids[:, : batch.width + longest]
        if not config.return_dict_in_generate:
            return sequences
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences)

    def _streamer(self, of_call: Any, input_ids: torch.Tensor) -> Any:
        """The streamer to serve; that of the call has been given the prompt already."""
        if of_call is not None and self.streamer is not None:
            raise BadInput("streamer: expected one, in `generate` or in `custom_generate`, got both")
        if (of_call or self.streamer) is not None and len(input_ids) > 1:
            raise BadInput(f"a streamer takes one sequence; expected a batch of one row, got {len(input_ids)}")
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        return of_call if of_call is not None else self.streamer


class _Rows:
    """The runs of one call, a session for each row, a round of each at a time.

    done: for each row, how many new tokens it had when a stopping criterion first held.
    """

    def __init__(
        self, how: custom_generate, batch: Batch, config, processors, criteria, most: int, eos: frozenset[int]
    ):
        self.batch, self.criteria, self.ends = batch, criteria, bool(eos)
        self.done: list[int | None] = [None] * len(batch)
        settings, processors = generation.sampling_of(config, processors)
        each = [[generation.row_processor(one, batch, row) for one in processors] for row in range(len(batch))]
        if len(batch) > 1:
            why = "custom_generate calls it for every row of a batch"
            refuse_stateful(each[0], how._lm.vocab_size, how._lm.device, why)
        settings |= {"seed": how.seed, "level": how.level, "cache": how.cache, "constraint": how.constraint}
        settings |= {"eos_ids": eos, "max_new_tokens": most}
        rows = ({"processors": own, "sample": row} for row, own in enumerate(each))
        self.sessions = [self._session(how, row, settings | own) for row, own in enumerate(rows)]
        how.traces = [session.trace for session in self.sessions]

    def _session(self, how: custom_generate, row: int, settings: dict[str, Any]) -> Session:
        prompt, most, context = self.batch.prompts[row], settings["max_new_tokens"], how._lm.context
        if len(prompt) + most > context:
            raise BadInput(
                f"max_new_tokens={most}: row {row} has {len(prompt)} tokens, and the context holds {context}; expected"
                f" at most {max(context - len(prompt), 0)}"
            )
        stop = (lambda new: self._stopped(row, new)) if self.criteria else ()
        try:
            return Session(how._lm, prompt, how.decoder, stop=stop, **settings)
        except BadInput as error:
            raise BadInput(f"row {row} of the batch: {error}" if len(self.batch) > 1 else str(error)) from error

    def _stopped(self, row: int, new: Sequence[int]) -> bool:
        """Whether a row would end here; searches ask this of texts that come to nothing, too. Without an end-of-text
        token stock rows go on until all of them are done."""
        done = dict(enumerate(self.done))
        if done[row] is None and self._holds(row, new):
            done[row] = len(new)
        return all(count is not None and count <= len(new) for count in ([done[row]] if self.ends else done.values()))

    def _holds(self, row: int, new: Sequence[int]) -> bool:
        seen = self.batch.around(row, self.batch.row(row, new))
        return any(generation.criterion_holds(criterion, seen, row) for criterion in self.criteria)

    def decode(self, streamer: Any) -> int:
        """Decode all rows; returns the number of new tokens of the longest."""
        _read_prompts(self.sessions)
        pending, counts = dict(enumerate(self.sessions)), [0] * len(self.batch)
        self.sessions = []  # a row's cache goes when the row is done
        while pending:
            turn = list(pending.items())
            going = together([session._compute for _, session in turn])
            for (row, session), more in zip(turn, going, strict=True):
                new = session.state.new_tokens
                self.batch.put(row, new)
                for token in new[counts[row] :] if streamer is not None else ():
                    streamer.put(torch.tensor([token]))
                if self.done[row] is None:
                    lengths = range(counts[row] + 1, len(new) + 1)
                    self.done[row] = next((n for n in lengths if self._holds(row, new[:n])), None)
                counts[row] = len(new)
                if not more or session.ended:
                    del pending[row]
        if streamer is not None:
            streamer.end()
        return max(count if done is None else done for count, done in zip(counts, self.done, strict=True))
