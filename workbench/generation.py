"""What transformers' `generate` hands to a callable, as runs of our own, one for each row of the batch.

A row is decoded by itself, and yet its processors and stopping criteria see what stock decoding shows them: the padded
batch so far, with this row in its place. What cannot be honoured is refused by name, before any work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from workbench.engine.sampling import Sampling, name_of, processed
from workbench.errors import BadInput, shown

PREFIX = "PrefixConstrainedLogitsProcessor"
GUIDANCE = "UnbatchedClassifierFreeGuidanceLogitsProcessor"
ROW_BY_ROW = frozenset({  # processors of transformers that look at one row at a time
    "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper",
    "EpsilonLogitsWarper", "EtaLogitsWarper", "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor",
    "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor",
    "ExponentialDecayLengthPenalty", "LogitNormalization", "SuppressTokensLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
})  # fmt: skip
WARPERS = (  # our settings, in the order in which they act, as transformers' classes: name, attribute
    ("temperature", "TemperatureLogitsWarper", "temperature"),
    ("top_k", "TopKLogitsWarper", "top_k"),
    ("top_p", "TopPLogitsWarper", "top_p"),
    ("min_p", "MinPLogitsWarper", "min_p"),
    ("typical_p", "TypicalLogitsWarper", "mass"),
)
INPUTS = {"attention_mask", "position_ids", "past_key_values", "cache_position", "use_cache", "logits_to_keep"}
NEUTRAL: dict[str, tuple] = {  # options that are not served, and the values of each that ask for nothing
    **dict.fromkeys(("num_beams", "num_beam_groups"), (None, 1)),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (None, False)),
    **dict.fromkeys(("penalty_alpha", "epsilon_cutoff", "eta_cutoff"), (None, 0.0)),
    **dict.fromkeys(("use_mtp", "is_assistant"), (None, False)),
    "guidance_scale": (None, 1.0),
    **dict.fromkeys(("constraints", "force_words_ids", "dola_layers", "top_h", "speculation_type"), (None,)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit"), (None,)),
}
DRAFTING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type")


def not_handed_on(frame: FrameType | None) -> dict[str, Any]:
    """Arguments of `generate` that it keeps from a callable, read in the frame that makes the call; else nothing."""
    inside = frame is not None and frame.f_code.co_name == "generate"
    names = ("assistant_model", "streamer", "synced_gpus")
    return {name: frame.f_locals.get(name) for name in names} if inside else {}


def refuse_unserved(model, input_ids: torch.Tensor, config, inputs: dict[str, Any], kept_back: dict[str, Any]) -> None:
    """Raise BadInput, naming it, for the first thing asked of `generate` that custom_generate cannot do."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise BadInput(
            f"custom_generate decodes with one stack of layers; {type(model).__name__} is an encoder-decoder"
        )
    if not kept_back and getattr(config, "num_return_sequences", None) not in (None, 1):
        raise BadInput("num_return_sequences: `generate` repeats the rows; called by itself, give as many rows")
    for name in (*kept_back, *NEUTRAL):
        value = kept_back.get(name) if name in kept_back else getattr(config, name, None)
        if name != "streamer" and value not in NEUTRAL.get(name, (None, False)):
            raise BadInput(_unserved(name, value))
    how = str(getattr(config, "cache_implementation", None))
    if "quant" in how or "offload" in how:
        raise BadInput(f"custom_generate does not serve cache_implementation={how!r}; give custom_generate(cache=…)")
    other = next((name for name, value in inputs.items() if name not in INPUTS and value is not None), None)
    if other is not None:
        raise BadInput(f"custom_generate decodes from input_ids alone; expected {other} unset")
    past = inputs.get("past_key_values")
    if past is not None and (getattr(past, "_is_user_defined", False) or past.get_seq_length()):
        raise BadInput("custom_generate keeps a cache of its own; expected past_key_values unset")
    if input_ids.shape[1] == 0:
        raise BadInput("custom_generate continues a prompt; expected input_ids of at least one token")


def _unserved(name: str, value: Any) -> str:
    if name == "num_beams":
        return f"custom_generate searches as custom_generate(Beam(beams={value})); expected num_beams=1"
    if name.startswith("output_"):
        return f"custom_generate returns token ids and traces; expected {name} unset (see .traces)"
    if name in DRAFTING:
        return f"custom_generate drafts with its own decoder, as custom_generate(Speculative(…)); expected {name} unset"
    got = value if isinstance(value, int | float | str) else type(value).__name__
    return f"custom_generate does not serve {name}={got}; expected it unset"


def sampling_of(config, processors: Sequence[Callable]) -> tuple[dict[str, Any], list[Callable]]:
    """Our sampling settings for a call, and the processors that act before them.

    `generate` puts the warpers of its own settings behind the caller's processors. Those at the end that say what our
    settings say, in the same order, become settings; whatever is before them stays a processor, the caller's own
    warpers included. So the distribution is that of the whole list, whoever put what into it.
    """
    from transformers.generation import logits_process

    kept = list(processors)
    if not config.do_sample:
        return {"temperature": 0.0}, kept
    found: dict[str, Any] = {"temperature": 1.0}
    for name, kind, attribute in reversed(WARPERS):
        value = _value(kept[-1], name, getattr(logits_process, kind), attribute) if kept else None
        if value is not None:
            found[name] = value
            kept.pop()
    return found, kept


def _value(processor: Callable, name: str, kind: type, attribute: str) -> Any:
    """The value of our setting `name` that makes just this warper, or None."""
    if type(processor) is not kind:
        return None
    value = getattr(processor, attribute)
    try:
        Sampling(**{name: value})
        return value if vars(processor) == vars(kind(value)) else None
    except (TypeError, ValueError, RuntimeError):  # outside our bounds, or with tensors for numbers
        return None


def ends_of(criteria: Sequence[Callable], config, width: int) -> tuple[int, frozenset[int], list[Callable]]:
    """Where a row ends: how many new tokens at most, at which ids, and the criteria to be asked."""
    from transformers.generation import stopping_criteria as theirs

    lengths = [c.max_length for c in criteria if type(c) is theirs.MaxLengthCriteria]
    lengths = lengths or [config.max_length or width + (config.max_new_tokens or 20)]
    ends = [torch.as_tensor(c.eos_token_id).flatten() for c in criteria if type(c) is theirs.EosTokenCriteria]
    eos = frozenset(token for end in ends for token in end.tolist())
    others = [c for c in criteria if type(c) not in (theirs.MaxLengthCriteria, theirs.EosTokenCriteria)]
    return max(1, min(lengths) - width), eos, others  # stock decoding asks after the first token


class Batch:
    """The padded rows of a call, as far as they are decoded.

    ids: int64 [B, width + most new tokens], `pad` where a row has no token (yet). prompts: the unpadded ids of each.

    Raises BadInput where a row has no token, is padded on the right, or is given positions of its own.
    """

    def __init__(self, input_ids: torch.Tensor, inputs: dict[str, Any], pad: int, most: int):
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(input_ids.device) != 0
        if mask.shape != input_ids.shape:
            raise BadInput(f"attention_mask: expected the shape {tuple(input_ids.shape)}, got {tuple(mask.shape)}")
        for row in range(len(input_ids)):
            if not mask[row].any():
                raise BadInput(f"row {row} of the batch is empty: its attention_mask rules out every token")
            if not mask[row, -1]:
                raise BadInput(f"attention_mask: row {row} is padded on the right; expected padding on the left")
        positions = inputs.get("position_ids")
        if positions is not None and not _counted(positions.to(mask.device), mask):
            raise BadInput("custom_generate counts the tokens of a row from 0; expected position_ids unset")
        self.width, self.pad = input_ids.shape[1], pad
        self.prompts = [ids[mask[row]].tolist() for row, ids in enumerate(input_ids)]
        space = torch.full((len(input_ids), most), pad, dtype=input_ids.dtype, device=input_ids.device)
        self.ids = torch.cat([input_ids, space], 1)

    def __len__(self) -> int:
        return len(self.ids)

    def put(self, row: int, new: Sequence[int]) -> None:
        """Note the new tokens of a row."""
        self.ids[row, self.width : self.width + len(new)] = torch.tensor(new, dtype=self.ids.dtype)

    def row(self, row: int, new: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Row `row`, padded, with other new tokens: [n]."""
        new = torch.as_tensor(new, dtype=self.ids.dtype, device=self.ids.device)
        return torch.cat([self.ids[row, : self.width], new])

    def around(self, row: int, own: torch.Tensor) -> torch.Tensor:
        """The batch when row `row` is `own` [n]: [B, n]; the other rows as far as they are, padded behind."""
        out = self.ids.new_full((len(self), len(own)), self.pad)
        known = self.ids[:, : len(own)]
        out[:, : known.shape[1]] = known
        out[row] = own
        return out


def _counted(positions: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether positions, of one plane or several, count the tokens of each row from 0."""
    counted = (mask.cumsum(-1) - 1)[mask]
    return positions.shape[-2:] == mask.shape and bool((positions[..., mask] == counted).all())


@dataclass
class RowProcessor:
    """A processor of a batch as the processor of one row, called with (ids [1, n], scores [1, V]) like any other.

    alone: it may be given its row alone; else it is given the whole batch, every row with the scores of this one.
    """

    inner: Callable
    batch: Batch
    row: int
    alone: bool

    def __post_init__(self) -> None:
        self.__name__ = name_of(self.inner)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        batch, count = self.batch, 1 if self.alone else len(self.batch)
        own = batch.row(self.row, ids[0, len(batch.prompts[self.row]) :])
        seen = own[None] if self.alone else batch.around(self.row, own)
        place = 0 if self.alone else self.row
        found = processed(self.inner, seen, scores.to(seen.device).repeat(count, 1))
        return found[place : place + 1].to(scores.device)


def row_processor(processor: Callable, batch: Batch, row: int) -> RowProcessor:
    """A processor of a call as that of one row."""
    kind = type(processor)
    theirs = kind.__name__ if kind.__module__ == "transformers.generation.logits_process" else ""
    if theirs == GUIDANCE:
        raise BadInput(f"custom_generate does not serve {GUIDANCE}, which runs the model by itself; leave it out")
    if theirs == PREFIX:  # the one that tells its caller which row it asks for
        allowed = processor._prefix_allowed_tokens_fn
        processor = kind(lambda _, ids: allowed(row, ids), 1)
    return RowProcessor(processor, batch, row, len(batch) == 1 or theirs == PREFIX or theirs in ROW_BY_ROW)


def criterion_holds(criterion: Callable, seen: torch.Tensor, row: int) -> bool:
    """What a stopping criterion says of one row of the padded batch [B, n]."""
    said = torch.as_tensor(criterion(seen, None))
    if said.dim() > 1 or (said.dim() == 1 and len(said) not in (1, len(seen))):
        raise BadInput(f"stopping criterion {name_of(criterion)}: expected a bool for every row, got {shown(said)}")
    return bool(said[row if len(said) > 1 else 0] if said.dim() else said)
