"""Cache policies: which tokens stay. One file per policy."""

from workbench.cache.policies.base import CachePolicy
from workbench.cache.policies.h2o import H2O
from workbench.cache.policies.snapkv import SnapKV
from workbench.cache.policies.streaming import StreamingLLM

__all__ = ["H2O", "CachePolicy", "SnapKV", "StreamingLLM"]
