"""The key-value store behind a fixed protocol: stage, commit, discard, segments, fork, ledger."""

from workbench.cache.store import CacheStore, PlainStore, Segment

__all__ = ["CacheStore", "PlainStore", "Segment"]
