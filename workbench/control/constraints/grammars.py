"""Three ways to write down which texts there may be; what they allow, `matching.py` finds out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.control.constraints.base import Constraint, Matcher, pieces_of
from workbench.control.constraints.matching import compiled, needs, sized
from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput, shown


class _Written(Constraint):
    """A constraint written down in a text, the one that llguidance calls `_kind`."""

    _kind = ""

    def start(self, lm: LanguageModel, prompt_ids: Sequence[int]) -> Matcher:
        pieces = pieces_of(lm)
        needs("llguidance", f"constraint {self.declared_name!r}")
        return compiled(self._grammar(), pieces, f"constraint {self.declared_name!r}")

    def _grammar(self) -> str:
        raise NotImplementedError


@register("constraint", "regex")
@dataclass(frozen=True)
class Regex(_Written):
    """The new text as a whole matches a regular expression.

    Syntax of Rust's `regex` without anchors, look-around and back-references, which are refused; `.` is no newline.
    Source: "Efficient Guided Generation for Large Language Models" (https://arxiv.org/abs/2307.09702;
    https://github.com/dottxt-ai/outlines), here by llguidance (https://github.com/guidance-ai/llguidance).
    """

    pattern: str = setting(trust="visitor", help="the whole new text matches it, such as [0-9]{4}-[0-9]{2}")

    def __post_init__(self) -> None:
        super().__post_init__()
        sized("Regex(pattern=…)", self.pattern)

    def _grammar(self) -> str:
        from llguidance import LLMatcher

        return json.loads(LLMatcher.grammar_from_regex(self.pattern))["grammars"][0]["lark_grammar"]


def _read_schema(value: Any) -> str:
    """A JSON schema as its text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(found) if isinstance(found, Mapping) else ""
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text:
        raise BadInput(f"JSONSchema(schema=…): expected an object, as JSON text or a dict, got {shown(value)}")
    return text


@register("constraint", "json_schema")
@dataclass(frozen=True)
class JSONSchema(_Written):
    """The new text is one JSON value that fits a schema; its properties come in the schema's order.

    Written as Python's `json.dumps` writes it, unless `whitespace` is free. What llguidance cannot hold a text to is
    refused rather than passed over. Sources: JSON Schema (https://json-schema.org); "Generating Structured Outputs from
    Language Models: Benchmark and Studies" (https://arxiv.org/abs/2501.10868;
    https://github.com/guidance-ai/jsonschemabench).
    """

    schema: str = setting("{}", trust="visitor", read=_read_schema, help="JSON text, in Python also a dict; {} is any")
    whitespace: bool = setting(False, help="any white space may stand between the parts")

    def __post_init__(self) -> None:
        super().__post_init__()
        sized("JSONSchema(schema=…)", self.schema)

    def _grammar(self) -> str:
        plain = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        how = {} if self.whitespace else {"x-guidance": plain}
        return f"start: %json {json.dumps(json.loads(self.schema) | how)}"


@register("constraint", "grammar")
@dataclass(frozen=True)
class Grammar(_Written):
    """The new text is a sentence of a context-free grammar, from the rule `start` on.

    Written in llguidance's dialect of Lark: rules in small letters, terminals in capital ones
    (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md). Source: "Grammar-Constrained Decoding for
    Structured NLP Tasks without Finetuning" (https://arxiv.org/abs/2305.13971; https://github.com/epfl-dlab/GCD), here
    by llguidance.
    """

    lark: str = setting(trust="visitor", help='rules in Lark, such as start: "yes" | "no"')

    def __post_init__(self) -> None:
        super().__post_init__()
        sized("Grammar(lark=…)", self.lark)

    def _grammar(self) -> str:
        return self.lark
