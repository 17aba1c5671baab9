"""Ahead-of-time compilation of Triton kernels for NVIDIA architectures, on any machine: no GPU needed, only Triton."""

import json
import os
import subprocess
import sys

SCRIPT = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
for module, name, signature, constexprs, options in json.loads(sys.argv[1]):
    kernel = getattr(importlib.import_module(module), name)
    for arch in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        assert len(compiled.asm["cubin"]) > 0
        print(name, arch, compiled.metadata.shared)
"""


def compile_all(*kernels: tuple[str, str, dict, dict, dict]) -> str:
    """Compile kernels (module, name, signature, constexprs, options) for sm80 and sm90 in one fresh process.

    signature: argument name -> Triton type ("*fp32", "i32", "constexpr", …), all arguments; constexprs: name -> value;
    options: e.g. {"num_warps": 4}. Raises AssertionError with the compiler's words where one does not compile.
    """
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(kernels)], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
