"""Triton's interpreter: what needs it, and how it runs at more than twice its speed, by preparing the language once a
launch, not at every helper call.

A kernel that calls a helper of its own or of Triton's (`tl.sum`, `tl.zeros`, …) makes the interpreter walk through all
of `triton.language` to swap its functions for those that compute; they are swapped already when the kernel starts.
"""

import os
import types

import pytest

__all__ = ["hurry", "needs_interpreter"]

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is off: kernels are tested on the device"
)


def hurry() -> None:
    """Swap the language's functions for a launch as a whole; look numpy's dtypes up once. Harmless to call again."""
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope") or hasattr(interpreter, "_hurried"):
        return
    interpreter._hurried = True
    scope_type, patch, dtype_of = interpreter._LangPatchScope, interpreter._patch_lang, interpreter._get_np_dtype
    helper = types.FunctionType((lambda: None).__code__, {"core": tl.core})  # sees what Triton's own helpers see
    launched, swaps, dtypes = [], {}, {}

    class Launch(scope_type):
        """Everything swapped from a launch's start to its end."""

        def restore(self) -> None:
            super().restore()
            launched.clear()

    def patch_once(fn):
        if launched:
            return scope_type()
        launch = Launch()
        if fn in swaps:
            for swap in swaps[fn]:
                launch.set_attr(*swap)
        else:
            for seer in (fn, helper):
                launch._changes += patch(seer)._changes
            swaps[fn] = [(owner, name, getattr(owner, name)) for owner, name, _ in launch._changes]
        launched.append(launch)
        return launch

    def known_dtype(kind):
        if type(kind) is not tl.dtype:
            return dtype_of(kind)
        if kind.name not in dtypes:
            dtypes[kind.name] = dtype_of(kind)
        return dtypes[kind.name]

    interpreter._patch_lang, interpreter._get_np_dtype = patch_once, known_dtype
