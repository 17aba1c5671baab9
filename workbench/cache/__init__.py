"""The key-value store behind a fixed protocol: stage, commit, discard, segments, fork, ledger; policies and stacks."""

from workbench.cache.methods import H2O, CachePolicy, SnapKV, StreamingLLM
from workbench.cache.stack import Stack, as_stack
from workbench.cache.store import CacheStore, PlainStore, Segment

__all__ = [
    "H2O", "CachePolicy", "CacheStore", "PlainStore", "Segment", "SnapKV", "Stack", "StreamingLLM", "as_stack",
]  # fmt: skip
