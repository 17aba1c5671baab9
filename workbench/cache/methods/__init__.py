"""Cache policies: which tokens stay. One file per policy."""

from workbench.cache.methods.base import CachePolicy
from workbench.cache.methods.h2o import H2O
from workbench.cache.methods.snapkv import SnapKV
from workbench.cache.methods.streaming import StreamingLLM

__all__ = ["H2O", "CachePolicy", "SnapKV", "StreamingLLM"]
