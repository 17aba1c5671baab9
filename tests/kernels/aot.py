"""Ahead-of-time compilation of Triton kernels for NVIDIA architectures, on any machine: no GPU needed, only Triton."""

import json
import os
import subprocess
import sys
from functools import cache

MOST_SHARED = {"80": 99 * 1024, "90": 227 * 1024}  # bytes of a program; of sm80 code, on the smallest GPU that runs it

SCRIPT = """
import importlib, json, sys, traceback
from collections import namedtuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def named(values):
    kinds = {dict: lambda t: namedtuple("T", t)(**t), list: tuple}
    return {name: kinds.get(type(t), lambda t: t)(t) for name, t in values.items()}

def aligned(signature):
    # as a launch adds them: pointers, and strides of whole rows, are multiples of 16
    found = {}
    for i, (name, kind) in enumerate(signature.items()):
        fields = [((i, j), *field) for j, field in enumerate(kind._asdict().items())] if isinstance(kind, tuple) and \
            hasattr(kind, "_asdict") else [((i,), name, kind)]
        for path, field, one in fields:
            if isinstance(one, str) and (one.startswith("*") or one == "i32" and "stride" in field):
                found[path] = [["tt.divisibility", 16]]
    return found

def compile_both(module, name, signature, constexprs, options):
    kernel = getattr(importlib.import_module(module), name)
    constexprs = named(constexprs)
    for argument, types in signature.items():
        for place, field in enumerate(types if isinstance(types, dict) else ()):
            if types[field] is None:
                types[field] = "constexpr"
                constexprs[kernel.arg_names.index(argument), place] = None
    signature = named(signature)
    for arch in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned(signature))
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        assert len(compiled.asm["cubin"]) > 0
        yield f"{name} {arch} {compiled.metadata.shared}"

answers, sys.stdout = sys.stdout, sys.stderr
for request in sys.stdin:
    try:
        answer = [line for kernel in json.loads(request) for line in compile_both(*kernel)]
    except Exception:
        answer = traceback.format_exc()
    print(json.dumps(answer), file=answers, flush=True)
"""


@cache
def compiler() -> subprocess.Popen:
    """A process without the interpreter, alive as long as this one: it imports torch and Triton once."""
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, text=True, **pipes)


def compile_all(*kernels: tuple[str, str, dict, dict, dict]) -> str:
    """Compile kernels (module, name, signature, constexprs, options) for sm80 and sm90 as launches do, with aligned
    pointers and strides: a line for each of both, the kernel's name, the architecture, bytes of shared memory.

    signature: argument name -> Triton type ("*fp32", "i32", "constexpr", …; a dict by field, or a named tuple, for a
    named tuple, in which None is None), all arguments; constexprs: name -> value; options: e.g. {"num_warps": 4}.
    Raises AssertionError with the compiler's words where one does not compile.
    """
    process = compiler()
    process.stdin.write(json.dumps([[_as_dicts(part) for part in kernel] for kernel in kernels]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the compiling process ended with status {process.wait()}"
    found = json.loads(answer)
    assert isinstance(found, list), found[-3000:]
    return "\n".join(found)


def _as_dicts(part):
    if not isinstance(part, dict):
        return part
    return {name: value._asdict() if isinstance(value, tuple) else value for name, value in part.items()}
