"""Plain Python first: decode a prompt, compare decoders, plug a decoder into `model.generate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.cache import as_stack
from workbench.decoders import Decoder
from workbench.engine.adapter import wrap
from workbench.engine.loading import Model
from workbench.engine.prompt import Prompt
from workbench.errors import BadInput
from workbench.session import Session, check_decoder
from workbench.trace import Trace

__all__ = ["custom_generate", "decode"]


def decode(
    lm: Model,
    prompt: Prompt,
    decoder: Decoder | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_round: Callable[[Session], None] | None = None,
    **settings: Any,
) -> Trace:
    """Decode one prompt to its end and return the trace.

    Parameters
    ----------
    lm: a model from `workbench.load`, the name of one, or a transformers model.
    prompt: text, token ids or chat messages.
    decoder: plain decoding by default.
    temperature, top_k, top_p, min_p, typical_p, processors: how the next token is drawn (default: greedy).
    max_new_tokens, stop, ignore_eos: where the run ends.
    cache: a cache policy, a quantizer, a list of both in this order, or a name; None keeps every token as it is.
    seed: of all randomness. level: "off", "default" or "full" instrumentation.
    force: ids to score instead of sampling. prompt_rows: log the law at every prompt token (`trace.prompt_tokens`).
    out: file that the trace is written to round by round; `overwrite` allows it to exist.
    on_round: called with the session after every round (progress, streaming).

    Ctrl-C ends the run as `interrupted` and returns the trace so far. Raises BadInput before any work where something
    does not fit; NumericalError and out-of-memory errors end the trace as `error` and carry it as `.trace`.
    """
    session = Session(lm, prompt, decoder, out=out, overwrite=overwrite, **settings)
    try:
        while session._compute():
            if on_round is not None:
                on_round(session)
    except KeyboardInterrupt:
        session.end("interrupted")
    return session.trace


class custom_generate:
    """A decoder as `custom_generate` of an untouched transformers model.

        model.generate(**inputs, custom_generate=workbench.custom_generate(workbench.Speculative()))

    Every row of the batch is decoded by itself. `max_new_tokens`, sampling settings, processors, stopping criteria,
    end-of-text and pad tokens are those of the call; beams are refused. The traces of the last call are in `.traces`.

    Parameters
    ----------
    decoder: plain decoding by default. seed, level, cache: as in `decode`. tokenizer: only for texts in the traces.
    streamer: a transformers streamer; give it here, since `generate` does not hand its own on to a callable.
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
    ):
        self.decoder, self.seed, self.level, self.tokenizer = check_decoder(decoder), seed, level, tokenizer
        self.streamer, self.cache = streamer, as_stack(cache)
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
        if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
            raise BadInput(
                "custom_generate decodes one sequence per row; expected num_beams=1 and num_return_sequences=1"
            )
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if getattr(config, name, False):
                raise BadInput(f"custom_generate returns token ids and traces; expected {name} unset (see .traces)")
        if self.streamer is not None:
            if len(input_ids) > 1:
                raise BadInput(f"a streamer takes one sequence; expected a batch of one row, got {len(input_ids)}")
            self.streamer.put(input_ids.cpu())
        self._lm = wrap(model, self.tokenizer)  # held, so that the next call finds it made
        self.traces = []
        settings = {
            **_sampling(config),
            "processors": [p for p in logits_processor if type(p).__name__ not in _WARPERS],
            "seed": self.seed,
            "level": self.level,
            "cache": self.cache,
        }
        attention_mask = model_kwargs.get("attention_mask")
        rows = []
        for row, ids in enumerate(input_ids):
            prompt = ids[attention_mask[row].bool()] if attention_mask is not None else ids
            rows.append(self._decode_row(prompt.tolist(), ids, settings, config, stopping_criteria))
        if self.streamer is not None:
            self.streamer.end()
        return self._assemble(input_ids, rows, config)

    def _decode_row(self, prompt, ids, settings, config, stopping_criteria) -> list[int]:
        eos = config.eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else torch.as_tensor(eos).flatten().tolist()
        budget = config.max_length - len(ids) if config.max_length else config.max_new_tokens
        others = [
            c for c in stopping_criteria or () if type(c).__name__ not in ("MaxLengthCriteria", "EosTokenCriteria")
        ]

        def stopped(new: Sequence[int]) -> bool:
            so_far = torch.cat([ids, torch.as_tensor(list(new), device=ids.device)])[None]
            return any(bool(torch.as_tensor(c(so_far, None)).any()) for c in others)

        session = Session(
            self._lm,
            prompt,
            self.decoder,
            max_new_tokens=max(1, budget),
            stop=stopped if others else (),
            eos_ids=frozenset(eos),
            **settings,
        )
        sent = 0
        while session._compute():
            if self.streamer is not None:
                new = session.state.new_tokens
                self.streamer.put(torch.as_tensor(new[sent:]))
                sent = len(new)
        self.traces.append(session.trace)
        return session.trace.token_ids

    @staticmethod
    def _assemble(input_ids: torch.Tensor, rows: list[list[int]], config):
        pad = config.pad_token_id
        if pad is None:
            eos = config.eos_token_id
            pad = eos if isinstance(eos, int) else (eos[0] if eos else 0)
        longest = max(map(len, rows))
        new = torch.full((len(rows), longest), int(pad), dtype=input_ids.dtype, device=input_ids.device)
        for i, row in enumerate(rows):
            new[i, : len(row)] = torch.tensor(row, dtype=input_ids.dtype)
        sequences = torch.cat([input_ids, new], 1)
        if config.return_dict_in_generate:
            from transformers.generation import GenerateDecoderOnlyOutput

            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences


_WARPERS = {
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
}


def _sampling(config) -> dict[str, Any]:
    """Our sampling settings for a generation config; BadInput for those it has and we do not."""
    if not config.do_sample:
        return {"temperature": 0.0}
    for name, neutral in (("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0), ("top_h", None), ("penalty_alpha", None)):
        if getattr(config, name, None) not in (None, neutral):
            raise BadInput(f"custom_generate does not serve {name}={getattr(config, name)}; expected it unset")

    def given(name: str, neutral: Any) -> Any:
        value = getattr(config, name, None)
        return None if value in (None, neutral) else value

    temperature = getattr(config, "temperature", None)
    return {
        "temperature": 1.0 if temperature is None else float(temperature),
        "top_k": given("top_k", 0),
        "top_p": given("top_p", 1.0),
        "min_p": given("min_p", 0.0),
        "typical_p": given("typical_p", 1.0),
    }
