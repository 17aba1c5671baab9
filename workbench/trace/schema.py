"""Schema 2 of the trace: every event, every table column, its type, unit and meaning, written down once.

The recorder, the reader, the tables, the Parquet files and the reference page (`markdown()`) all follow this module.
Units: nats, milliseconds, bytes, probabilities in 0..1, positions in tokens from 0.
"""

from dataclasses import dataclass, replace

SCHEMA = 2
GUARANTEES = ("exact", "seeded", "distribution", "own", "lossy")
LEVELS = ("off", "default", "full")
MODES = ("prefill", "plain", "chain", "tree", "jacobi", "branch", "search", "diffusion")
SOURCES = ("target", "bonus", "residual", "forced", "user")
PHASES = ("prefill", "draft", "target", "score", "lookahead", "probe", "canvas", "commit")
FATES = ("accepted", "rejected", "sibling_won", "parent_rejected", "pruned", "after_end")
OPS = (
    "quantize", "requantize", "evict", "merge", "narrow", "offload", "fetch", "splice", "share", "rerotate", "drop",
)  # fmt: skip
_KIND_TEXT = {
    "payload": "keys and values themselves", "scale": "quantization scales", "zero": "quantization zero points",
    "codebook": "codebooks", "index": "codebook or slot indices", "note": "what a method keeps beside a token",
    "outlier": "values kept apart at full width", "lowrank": "low-rank factors",
    "table": "page tables", "position": "stored positions", "header": "page headers",
    "bias": "attention biases of slots", "score": "scores of the policy",
    "state": "recurrent states", "staging": "rows staged beside the cache",
    "dead": "slots dropped but not yet reused", "pad": "unused slots and alignment",
}  # fmt: skip
CACHE_KINDS = (*_KIND_TEXT,)
CACHE_COUNTS = ("kept", "evicted", "merged", "fetched")
# the column that is in every group of a round: its key
KEYS = {
    "tokens": "token_id", "prompt": "token_id", "drafts": "node", "hypotheses": "id", "canvas": "position",
    "forwards": "phase", "bits": "start", "reads": "held", "requests": "id",
}  # fmt: skip
DERIVED = ("index", "position", "round", "bytes")  # columns that are required in a table and not written in a group
SHORT, NAMES = 128, 128


@dataclass(frozen=True)
class Column:
    """One field of an event or one column of a table.

    `type` of a table's column: `int` (from `low` to 2⁵³), `id` (a token's, below 2³¹), `float`, `bool`, `text`, `short`
    (a text of at most `SHORT` characters), `name` (such a text, one of at most `NAMES` different ones in a
    trace), `topk` (a pair: list of token ids, list of their probabilities), `runs` (a position, or a list of positions
    or of runs [start, length]), `place` (text or `runs`) or `any` (a JSON value).

    Of an event's field also: `ids` and `texts` (lists), `mapping` (its entries as in `ENTRIES`, where it is there),
    `mappings` (a list of such), `declared` (a mapping whose `settings` are a mapping, and so on inside), `columns` (of
    the group of that name), `layers` (role → columns of the cache table) and `rows` (columns of `ROWS`; among them
    `floats`, a list). In `ENTRIES`, `layered` is a number or a list of one per layer, `pair` a number or two.

    A column that is not `required` may be missing: NaN in numbers (so an `int` column that may be missing is stored as
    float64), None in the other types, False in `bool`. One with a `default` is that where it is missing, and never
    null in a file. What `workbench.trace.door` lets in keeps to all this.
    """

    name: str
    type: str
    unit: str
    description: str
    required: bool = False
    default: int | str | bool | None = None
    low: int = 0

    @property
    def dtype(self) -> str:
        """The pandas dtype of the column, the same whatever the data."""
        if self.type in ("int", "id"):
            return "int64" if self.required else "float64"
        return {"float": "float64", "bool": "bool"}.get(self.type, "object")

    @property
    def is_json(self) -> bool:
        """Whether its values are kept as JSON text where there are only plain columns."""
        return self.type in ("runs", "place", "any")


def _need(name: str, type: str, unit: str, description: str, **more) -> Column:
    return Column(name, type, unit, description, required=True, **more)


TABLES: dict[str, tuple[Column, ...]] = {}
TABLES["tokens"] = (
    _need("index", "int", "tokens", "place among the new tokens, 0 for the first; negative in the prompt"),
    _need("position", "int", "tokens", "place in the whole sequence: prompt length + index"),
    _need("round", "int", "", "round that committed the token"),
    _need("token_id", "id", "", "id in the target's vocabulary"),
    Column("text", "text", "", "what the token adds to the text; the texts joined are the output"),
    _need("bytes", "int", "bytes", "length of `text` in UTF-8"),
    Column("source", "name", "", f"who produced it: {', '.join(SOURCES)} or the drafter's name"),
    Column("model", "name", "", "role of the model whose distribution it was drawn from"),
    Column("hypothesis", "int", "", "hypothesis it was taken from"),
    Column("entropy_raw_nats", "float", "nats", "entropy of the model's own next-token distribution"),
    Column("entropy_sampled_nats", "float", "nats", "the same of the distribution sampled from, after all filters"),
    Column("varentropy_nats2", "float", "nats²", "variance of the surprisal under the next-token distribution"),
    Column("surprisal_nats", "float", "nats", "−log p of the token under the next-token distribution"),
    Column("p_raw", "float", "probability", "probability of the token under the next-token distribution"),
    Column("p_sampled", "float", "probability", "probability of the token under the distribution sampled from"),
    Column("rank", "int", "", "rank of the token in the next-token distribution, 1 = most likely"),
    Column("margin", "float", "probability", "p of the likeliest token minus p of the second"),
    Column("topk_raw", "topk", "ids, probability", "most likely next tokens: [ids, probabilities]"),
    Column("topk_sampled", "topk", "ids, probability", "the same of the distribution sampled from"),
    Column("cut_by", "short", "", "what removed the rest of the vocabulary (top_k, top_p, …, a processor)"),
    Column("keep_size", "int", "tokens", "tokens left with probability above 0 in the distribution sampled from"),
    Column("allowed_count", "int", "tokens", "tokens that the constraint allowed"),
    Column("allowed_mass", "float", "probability", "raw probability of those"),
    Column("log_z", "float", "nats", "log of the constraint's normaliser"),
    Column("exit_layer", "int", "", "layer the token was read at, from 0"),
    Column("layers_run", "int", "layers", "layers that ran for it"),
    Column("ffn_skipped", "int", "layers", "of them without their feed-forward part"),
    Column("attribution", "any", "", "what else it is traced back to"),
    Column("target_forwards", "int", "forwards", "of its round (a prefill too) for the first token, else 0"),
    Column("decision", "short", "", "action a controller took in the token's round"),
)  # fmt: skip

TABLES["rounds"] = (
    _need("round", "int", "", "number of the round, 0 for the prefill"),
    Column("mode", "name", "", ", ".join(MODES)),
    _need("drafted", "int", "tokens", "tree nodes drafted"),
    _need("accepted", "int", "tokens", "drafted tokens committed"),
    _need("emitted", "int", "tokens", "tokens committed, bonus included"),
    _need("bonus", "bool", "", "a token was drawn after the accepted path"),
    Column("stop_reason", "short", "", "what ended the run in this round (eos, length, stop, time, …)"),
    Column("budget", "int", "tokens", "draft tokens allowed"),
    _need("depth", "int", "tokens", "deepest drafted node"),
    Column("draft_ms", "float", "ms", "time of the drafter"),
    Column("target_ms", "float", "ms", "time of the target's forwards"),
    Column("verify_ms", "float", "ms", "time of verification and sampling"),
    Column("commit_ms", "float", "ms", "time of committing rows to the caches"),
    Column("cache_ms", "float", "ms", "time of cache maintenance"),
    Column("recording_ms", "float", "ms", "what logging cost; the way to the file counts in the next round"),
    Column("total_ms", "float", "ms", "time of the whole round"),
    Column("rows_target", "int", "rows", "query rows the target computed"),
    Column("rows_draft", "int", "rows", "query rows the draft model computed"),
    _need("context", "int", "tokens", "committed tokens after the round"),
    Column("cache_bytes", "int", "bytes", "keys and values on the device after commit, all kinds, all models"),
    Column("host_bytes", "int", "bytes", "the same, in the host tier"),
    Column("resident_bytes", "int", "bytes", "storages in full, shared ones once; else cache_bytes + host_bytes"),
    Column("peak_bytes", "int", "bytes", "largest cache_bytes so far"),
    Column("bits_per_element", "float", "bits", "8 × bytes over the target's live elements, free slots left out"),
    Column("full_cache_bytes", "int", "bytes", "payload of all committed tokens in the models' own dtype, by shapes"),
)  # fmt: skip

TABLES["drafts"] = (
    _need("round", "int", "", "round of the draft"),
    _need("node", "int", "", "number of the node, 1 for the first; 0 is the root, the pending token", low=1),
    Column("parent", "int", "", "number of the parent node"),
    Column("depth", "int", "tokens", "distance from the root"),
    Column("token_id", "id", "", "drafted token"),
    Column("text", "text", "", "its text"),
    Column("kind", "name", "", "dist (drawn from the stored proposal row) or point (put there by any other rule)"),
    Column("drafter", "name", "", "who proposed it"),
    Column("rank", "int", "", "rank in the proposal row, 1 = most likely"),
    Column("q", "float", "probability", "proposal probability"),
    Column("p", "float", "probability", "target probability at the node"),
    Column("entropy_draft_nats", "float", "nats", "entropy of the proposal row"),
    Column("entropy_target_nats", "float", "nats", "entropy of the target's distribution at the node"),
    Column("tv", "float", "probability", "total variation between the two distributions"),
    Column("kl_nats", "float", "nats", "KL divergence of the proposal from the target's distribution"),
    Column("fate", "name", "", ", ".join(FATES)),
    Column("reason", "short", "", "ratio, mismatch, threshold, judge, grammar"),
    Column("u", "float", "", "uniform draw of the acceptance test"),
    Column("residual", "topk", "ids, probability", "of a rejected node: likeliest tokens of the residual"),
    Column("lossy", "bool", "", "accepted where the exact test would have rejected it"),
)  # fmt: skip

TABLES["hypotheses"] = (
    _need("round", "int", "", "round of the hypothesis"),
    _need("id", "int", "", "number of the hypothesis, from its lineage"),
    Column("parent", "int", "", "hypothesis it goes on from"),
    Column("depth", "int", "tokens", "its length"),
    Column("token_id", "id", "", "its last token"),
    Column("text", "text", "", "what that adds to the text"),
    Column("logp", "float", "nats", "log-probability of its tokens"),
    Column("score", "float", "", "what it is ranked by"),
    Column("weight", "float", "", "its weight among the others"),
    Column("role", "name", "", "beam, lookahead, rollout, particle, sample"),
    Column("fate", "name", "", "live, won, pruned, finished"),
    Column("reason", "short", "", "why"),
)

TABLES["canvas"] = (
    _need("round", "int", "", "round of the canvas"),
    _need("position", "int", "tokens", "place in the whole sequence"),
    Column("block", "int", "", "block from 0"),
    Column("token_id", "id", "", "token there"),
    Column("text", "text", "", "its text"),
    Column("confidence", "float", "probability", "what the rule went by"),
    Column("entropy_nats", "float", "nats", "entropy of the distribution there"),
    Column("rule", "name", "", "what chose the state"),
    Column("state", "name", "", "masked, proposed, fixed, remasked"),
    Column("rows", "int", "rows", "query rows computed for it"),
    Column("cached_rows", "int", "rows", "rows read from the cache instead"),
)

TABLES["forwards"] = (
    _need("round", "int", "", "round of the forward pass"),
    Column("phase", "name", "", ", ".join(PHASES)),
    Column("model", "name", "", "role of the model"),
    Column("sequences", "int", "", "sequences in it; missing = one"),
    Column("rows", "int", "rows", "query rows"),
    Column("context", "int", "tokens", "keys visible to the last row"),
    Column("layers_run", "int", "layers", "layers that ran; operations and bytes are of these; missing = all"),
    Column("wall_ms", "float", "ms", "synchronised wall-clock time"),
    Column("flops", "float", "FLOP", "floating-point operations, from the shapes"),
    Column("weight_bytes", "float", "bytes", "weights read"),
    Column("kv_read_bytes", "float", "bytes", "keys and values read"),
    Column("kv_write_bytes", "float", "bytes", "keys and values written"),
    Column("implementation", "short", "", "what computed the attention (torch, sdpa, triton, …)"),
)

TABLES["cache"] = (
    _need("round", "int", "", "round after whose commit this holds"),
    Column("model", "name", "", "role of the model"),
    _need("layer", "int", "", "layer from 0"),
    Column("head", "int", "", "KV head from 0; missing = all"),
    Column("live_slots", "int", "slots", "slots held per KV head"),
    *(Column(name, "int", "slots", f"slots {name} in this round", default=0) for name in CACHE_COUNTS),
    Column("logical_length", "int", "tokens", "committed tokens, evicted ones included"),
    *(Column(name, "int", "bytes", _KIND_TEXT[name], default=0) for name in CACHE_KINDS),
    Column("bytes", "int", "bytes", "sum of the kinds"),
    Column("host_bytes", "int", "bytes", "of them in the host tier", default=0),
    Column("tier", "name", "", "device or host", default="device"),
    Column("simulated", "bool", "", "the bytes are those of a format that is imitated, not stored", default=False),
    Column("bits_nominal", "float", "bits", "width of an element as declared"),
    Column("bits_effective", "float", "bits", "8 × bytes over live elements, free slots and staged rows left out"),
)

TABLES["bits"] = (
    _need("round", "int", "", "round of the change"),
    Column("model", "name", "", "role of the model"),
    _need("layer", "int", "", "layer from 0; of a tensor of weights −1, as head and start", low=-1),
    _need("head", "int", "", "KV head from 0", low=-1),
    _need("start", "int", "tokens", "first position of the run", low=-1),
    _need("length", "int", "tokens", "positions in the run"),
    Column("bits_k", "float", "bits", "width of the keys"),
    Column("bits_v", "float", "bits", "width of the values"),
    Column("tensor", "short", "", "name of a tensor of weights"),
    Column("bits", "float", "bits", "its width"),
    Column("codec", "name", "", "storage format, raw for the model's own"),
    Column("reason", "short", "", "why it changed; append for tokens newly committed"),
    Column("err_rms_k", "float", "", "root-mean-square error of the keys against what was replaced"),
    Column("err_rms_v", "float", "", "the same for the values"),
)

TABLES["reads"] = (
    _need("round", "int", "", "round of the read"),
    Column("model", "name", "", "role of the model"),
    Column("layer", "int", "", "layer from 0"),
    Column("head", "int", "", "KV head from 0; missing = all"),
    Column("unit", "name", "", "pages or slots"),
    _need("held", "int", "units", "how many there were"),
    Column("read", "int", "units", "how many were read"),
    Column("bytes_read", "int", "bytes", "keys and values read"),
    Column("bytes_fetched", "int", "bytes", "of them brought from another tier"),
    Column("recall_mass", "float", "probability", "attention mass of what was read; level full"),
)

TABLES["requests"] = (
    _need("id", "short", "", "name of the request"),
    Column("arrival_ms", "float", "ms", "when it came, from the start of the replay"),
    Column("prompt_tokens", "int", "tokens", "its prompt"),
    Column("new_tokens", "int", "tokens", "what it was given"),
    Column("ttft_ms", "float", "ms", "time to its first token"),
    Column("tpot_ms", "float", "ms", "time per token after that"),
    Column("finished_ms", "float", "ms", "when it was done"),
    Column("pool", "name", "", "where it ran"),
    Column("cache_bytes", "int", "bytes", "most bytes of its cache"),
    Column("transfer_bytes", "int", "bytes", "cache moved between pools"),
    Column("preempted", "int", "", "how often it had to wait once begun"),
)

# what is inside the fields of events that are mappings (or lists of them), and the kept rows of level `full`
ENTRIES: dict[str, tuple[Column, ...]] = {
    "models": (
        Column("role", "name", "", "target, draft, …"),
        Column("name", "text", "", "what it was loaded as"),
        Column("digest", "short", "", "SHA-256 of its weights"),
        Column("dtype", "short", "", "of its weights"),
        Column("quantization", "short", "", "of its weights, missing where there is none"),
        Column("layers", "int", "", "number of layers"),
        Column("kv_heads", "layered", "", "KV heads of a layer"),
        Column("head_dim", "pair", "", "size of a key and of a value"),
        Column("kv_bits", "float", "bits", "width of an element of the cache"),
        Column("vocab_size", "int", "", "number of token ids"),
        Column("context", "int", "tokens", "longest sequence"),
        Column("parameters", "int", "", "number of weights"),
        Column("weight_bytes", "float", "bytes", "of all weights"),
        Column("row_bytes", "float", "bytes", "of the weights that one row reads"),
    ),
    "sampling": (Column("temperature", "float", "", "0 for the likeliest token"),),
    "baseline": (Column("tokens_per_second", "float", "tokens/s", "speed of the plain run"),),
    "ms": tuple(replace(c, name=c.name.removesuffix("_ms")) for c in TABLES["rounds"] if c.name.endswith("_ms")),
    "body": (Column("name", "name", "", "stock, fast, graph"), Column("reason", "short", "", "why")),
    "figures": (Column("resident_bytes", "int", "bytes", "as in the rounds table, where the store names it"),),
}  # fmt: skip
ROWS = (
    _need("position", "int", "tokens", "position the row predicts"),
    _need("ids", "ids", "", "most likely tokens, the first first"),
    _need("logp", "floats", "nats", "their log-probabilities"),
    Column("tail_mass", "float", "probability", "mass of all others"),
    Column("node", "int", "", "of a draft: the tree node the row was read at, −1 for committed text", low=-1),
    Column("best", "ids", "", "of a draft: what it would propose, in order"),
)

_CACHE_EVENT = (
    Column("model", "name", "", "role of the model"),
    Column("hypothesis", "int", "", "hypothesis whose cache it was; missing for that of the text"),
    Column("layer", "int", "", "layer from 0"),
    Column("head", "int", "", "KV head from 0; missing = all"),
    Column("op", "name", "", ", ".join(OPS)),
    Column("positions", "runs", "tokens", "positions it touched, as runs [start, length]"),
    Column("destination", "place", "", "position, tier (device, host, same memory) or page they went to"),
    Column("bits", "float", "bits", "width afterwards"),
    Column("bytes", "int", "bytes", "bytes moved or freed"),
    Column("ms", "float", "ms", "time that took, of a fetch"),
    Column("importance", "any", "", "score that decided"),
    Column("reason", "short", "", "why"),
)
_DECISION_EVENT = (
    Column("controller", "short", "", "who acted"),
    Column("signals", "any", "", "signals read: list of {name, value, unit}"),
    Column("threshold", "any", "", "threshold compared with"),
    Column("action", "short", "", "what it did"),
    Column("alternatives", "any", "", "what it could have done instead"),
    Column("cost", "any", "", "cost of the action"),
    Column("cut", "any", "", "what it cut off"),
)
_MARK_EVENT = (
    Column("kind", "short", "", "back, jump, breakpoint, note, …"),
    Column("place", "any", "", "where: `index` and `round`; for a cursor, tokens and rounds before it"),
    Column("note", "text", "", "free text"),
)
COUNTS = ("drafted", "accepted", "emitted", "bonus", "stop_reason", "budget", "depth", "context")  # of a round event
TABLES["events"] = (
    _need("type", "text", "", "cache, decision or mark"),
    Column("round", "int", "", "round of the event; for a mark, rounds recorded before it"),
    *{c.name: c for c in (*_MARK_EVENT, *_DECISION_EVENT, *_CACHE_EVENT)}.values(),
)

EVENTS: dict[str, tuple[Column, ...]] = {
    "run": (
        _need("schema", "int", "", f"{SCHEMA}"),
        Column("id", "short", "", "name of the trace"),
        Column("time", "short", "", "start, ISO 8601"),
        Column("versions", "mapping", "", "package and library versions"),
        Column("device", "short", "", "where it ran"),
        Column("body", "mapping", "", "who runs its rounds (name: stock, fast or graph), and why (reason)"),
        Column("models", "mappings", "", f"per model: {', '.join(c.name for c in ENTRIES['models'])}"),
        Column("decoder", "declared", "", "the decoder with all its settings"),
        Column("guarantee", "short", "", ", ".join(GUARANTEES)),
        Column("verified", "texts", "", "what has verified the guarantee"),
        Column("cache", "declared", "", "the cache stack, null for the plain one"),
        Column("constraint", "declared", "", "what text may be written, null where any"),
        Column("sampling", "mapping", "", "temperature, top_k, top_p, min_p, typical_p, processors"),
        Column("seed", "any", "", "seed, a whole number from 0 to 2⁶³"),
        Column("sample", "int", "", "which of the samples of that seed, 0 where there is one"),
        Column("level", "short", "", ", ".join(LEVELS)),
        Column("max_new_tokens", "int", "tokens", "limit of the run"),
        Column("max_time", "float", "s", "limit of its rounds' time"),
        Column("stop", "texts", "", "stop strings"),
        Column("forced", "mapping", "", "index of a new token, as text → the id it was given"),
        Column("prompt_ids", "ids", "", "token ids of the prompt"),
        Column("prompt_text", "text", "", "text of the prompt"),
        Column("prompt_spans", "any", "", "parts of it: list of {name, start, length} in tokens"),
        Column("parent", "mapping", "", "for a branch: trace, round and token index it left from"),
        Column("inexact", "int", "tokens", "position from which on the target's cache was read behind another text, or "
               "in parts that do not see each other; missing = nowhere"),
        Column("edited", "mapping", "", "for an edited text: trace, round and token index of the text it was, and what "
               "its cache kept of it as blocks [from, tokens, to]"),
        Column("attached", "mapping", "", "for contexts read apart: trace, round and index of the text before, the "
               "position they begin `at`, ids of the `contexts`, temperature, scale"),
        Column("baseline", "mapping", "", "plain run of the same process: tokens_per_second"),
    ),
    "round": (
        _need("round", "int", "", "number of the round, 0 for the prefill"),
        _need("index", "int", "tokens", "index of the first token it emits"),
        _need("mode", "name", "", ", ".join(MODES)),
        *(replace(c, required=False) for c in TABLES["rounds"] if c.name in COUNTS),
        Column("ms", "mapping", "ms", "times by phase, as in the rounds table"),
        Column("tokens", "columns", "", "columns of the tokens table"),
        Column("rest", "text", "", "what the last text lacks if the run ends here: U+FFFD for a character cut short"),
        Column("prompt", "columns", "", "the same of the prompt's tokens from the second on, where asked for"),
        *(Column(name, "columns", "", f"columns of the {name} table") for name in [*KEYS][2:]),
        Column("cache", "layers", "", "role → columns of the cache table over layers; zero kinds and counts left out"),
        Column("inputs", "mapping", "", "what decided and follows from no seed; read back if the round is done again"),
        Column("figures", "mapping", "", "state of the decoder after the round"),
        Column("flags", "texts", "", "columns in which a value was infinite or NaN and is null here"),
    ),
    "cache": (_need("round", "int", "", "round of the call"), *_CACHE_EVENT),
    "decision": (_need("round", "int", "", "round of the decision"), *_DECISION_EVENT),
    "rows": (
        _need("round", "int", "", "round of the rows"),
        Column("target", "rows", "", "of each row: position it predicts, top-M ids and log-probabilities, tail mass"),
        Column("draft", "rows", "", "the same of the draft's rows, with their tree node and best proposals in order"),
        Column("attention", "any", "", "attention mass, where asked"),
    ),
    "mark": (_need("round", "int", "", "rounds recorded before it"), *_MARK_EVENT),
    "end": (
        _need("reason", "short", "", "eos, length, stop, time, grammar, interrupted, error"),
        Column("message", "text", "", "one line"),
        Column("totals", "any", "", "rounds, tokens, drafted, accepted, total_ms"),
    ),
}  # fmt: skip


ABOUT = """A trace is UTF-8 JSON lines, gzipped or not: the `run` event first, then what happened, round by round.

In a round, the columns of a table are lists of one length; columns without values and the round's number are left out,
and so are appended widths (`bits`). Over layers, a column whose values are all equal is written as that one value, and
zero kinds and counts, the tier `device`, the width of the model's own dtype and a `logical_length` equal to
`live_slots` are left out. Floats carry six significant digits, times four, top-k probabilities three."""


def markdown() -> str:
    """The schema as a Markdown page: events, then tables, a row per column."""
    parts = [f"# Trace schema {SCHEMA}\n\n{ABOUT}\n"]
    for title, groups in (("Events", EVENTS), ("Tables", TABLES)):
        parts.append(f"## {title}\n")
        for name, columns in groups.items():
            parts.append(f"### {name}\n\n| column | type | unit | meaning |\n|---|---|---|---|")
            for c in columns:
                kind = c.type if c.required else f"{c.type}, may be missing"
                parts.append(f"| `{c.name}` | {kind} | {c.unit or '–'} | {c.description} |")
            parts.append("")
    return "\n".join(parts)
