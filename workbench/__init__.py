"""The decoding workbench: adaptive decoding of language models, token by token.

    import workbench as wb
    lm = wb.load("embedded")
    trace = wb.decode(lm, "def fibonacci(n):", wb.Speculative(drafter=wb.DraftModel("embedded-draft")))

Names are imported when first used, so that `import workbench` and reading traces stay quick.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "workbench.api": ("custom_generate", "decode"),
    "workbench.cache.codecs": ("KIVI", "Paged", "Quantizer"),
    "workbench.cache": ("CachePolicy", "H2O", "SnapKV", "Stack", "StreamingLLM"),
    "workbench.report.capsule": ("open_capsule", "write_capsule"),
    "workbench.decoders": ("Autoregressive", "Decoder", "EntropyAdaptive", "Mirostat", "Pearl", "Speculative"),
    "workbench.report.doctor": ("doctor",),
    "workbench.models.loading": ("load", "register_model"),
    "workbench.engine.sampling": ("Sampling",),
    "workbench.engine.toy": ("ToyModel",),
    "workbench.errors": ("BadInput", "BadTrace", "NumericalError", "Unsupported", "WorkbenchError"),
    "workbench.experiments": ("Arm", "Costs", "Verdict", "compare", "headroom", "lossless"),
    "workbench.session": ("Session",),
    "workbench.speculation": (
        "ADED",
        "AdaptiveConfidence",
        "ConfidenceStop",
        "CopySpec",
        "Del",
        "DraftModel",
        "DraftShape",
        "DraftTree",
        "Drafter",
        "DySpec",
        "Eagle",
        "Eagle2",
        "FixedLength",
        "FixedTree",
        "Fuse",
        "Greedy",
        "HeuristicLength",
        "Hydra",
        "IndependentChains",
        "InputGuided",
        "Jacobi",
        "Judge",
        "KSeq",
        "Kangaroo",
        "SeededMatch",
        "LayerSkip",
        "Medusa",
        "PointMatch",
        "PromptLookup",
        "Rejection",
        "RowDrafter",
        "Sequoia",
        "SpecDec",
        "StochasticBeam",
        "SuffixRetrieval",
        "TokenRecycling",
        "Typical",
        "Verifier",
        "search_skip",
    ),
    "workbench.training.prompts": ("held_out_prompts",),
    "workbench.trace": ("Trace",),
    "workbench.widgets": ("SessionWidget", "TraceWidget"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
