"""Kernels of the decoding workbench: each a torch reference that defines its meaning, most with a Triton twin.

Importing this package imports torch alone. Triton is imported when a Triton kernel is first asked for; where it is
missing, the request is refused with a reason.
"""

__all__ = ["distribution", "noise", "pages", "segment_attention", "selftest", "verification"]
