"""The one list of members, and of the other names that the package offers: what is not here is nowhere.

From it come the exports of `workbench` and of its rooms, the stub `__init__.pyi`, the registry, the catalogue, the
reference page, the app's forms and figures, and the tables of the tests. A new member is its own file and one line of
MEMBERS.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from workbench import aliases

FAMILIES = {  # each family of declared classes, and what several of its members are called
    "decoder": "decoders",
    "drafter": "drafters",
    "shape": "shapes",
    "verifier": "verifiers",
    "policy": "policies",
    "quantizer": "quantizers",
    "reader": "readers",
    "cache": "caches",
    "scorer": "scorers",
    "constraint": "constraints",
}

FUNCTIONS = {  # families of functions, whose members are called and not declared
    "view": "views",  # from a trace to a figure; the app offers those that `workbench.views.figure.offered` names
    "recipe": "recipes",  # to a `Part` or a `Stage`, which `python -m workbench.training` trains by its name
}

MEMBERS = (  # family, name, module, class or function
    ("decoder", "adadec", "workbench.decoders.adadec", "AdaDec"),
    ("decoder", "autoregressive", "workbench.decoders.autoregressive", "Autoregressive"),
    ("decoder", "beam", "workbench.decoders.beam", "Beam"),
    ("decoder", "best_of", "workbench.decoders.best_of", "BestOf"),
    ("decoder", "entropy_adaptive", "workbench.decoders.entropy_adaptive", "EntropyAdaptive"),
    ("decoder", "mirostat", "workbench.decoders.mirostat", "Mirostat"),
    ("decoder", "pearl", "workbench.decoders.pearl", "Pearl"),
    ("decoder", "speculative", "workbench.decoders.speculative", "Speculative"),
    ("drafter", "aded", "workbench.speculation.drafters.aded", "ADED"),
    ("drafter", "copyspec", "workbench.speculation.drafters.copyspec", "CopySpec"),
    ("drafter", "draft_model", "workbench.speculation.drafters.draft_model", "DraftModel"),
    ("drafter", "eagle", "workbench.speculation.drafters.eagle", "Eagle"),
    ("drafter", "fuse", "workbench.speculation.drafters.fuse", "Fuse"),
    ("drafter", "hydra", "workbench.speculation.drafters.hydra", "Hydra"),
    ("drafter", "input_guided", "workbench.speculation.drafters.aggressive", "InputGuided"),
    ("drafter", "jacobi", "workbench.speculation.drafters.jacobi", "Jacobi"),
    ("drafter", "kangaroo", "workbench.speculation.drafters.kangaroo", "Kangaroo"),
    ("drafter", "layer_skip", "workbench.speculation.drafters.layer_skip", "LayerSkip"),
    ("drafter", "medusa", "workbench.speculation.drafters.medusa", "Medusa"),
    ("drafter", "prompt_lookup", "workbench.speculation.drafters.prompt_lookup", "PromptLookup"),
    ("drafter", "recycling", "workbench.speculation.drafters.recycling", "TokenRecycling"),
    ("drafter", "suffix", "workbench.speculation.drafters.suffix", "SuffixRetrieval"),
    ("shape", "adaptive_confidence", "workbench.speculation.shapes.adaptive", "AdaptiveConfidence"),
    ("shape", "chains", "workbench.speculation.shapes.chains", "IndependentChains"),
    ("shape", "confidence", "workbench.speculation.shapes.confidence", "ConfidenceStop"),
    ("shape", "del", "workbench.speculation.shapes.del_", "Del"),
    ("shape", "dyspec", "workbench.speculation.shapes.dyspec", "DySpec"),
    ("shape", "eagle2", "workbench.speculation.shapes.eagle2", "Eagle2"),
    ("shape", "fixed", "workbench.speculation.shapes.fixed", "FixedLength"),
    ("shape", "heuristic", "workbench.speculation.shapes.heuristic", "HeuristicLength"),
    ("shape", "rsd_s", "workbench.speculation.shapes.rsd_s", "StochasticBeam"),
    ("shape", "sequoia", "workbench.speculation.shapes.sequoia", "Sequoia"),
    ("shape", "specdec", "workbench.speculation.shapes.specdec", "SpecDec"),
    ("shape", "tree", "workbench.speculation.shapes.fixed", "FixedTree"),
    ("verifier", "greedy", "workbench.speculation.verifiers.match", "Greedy"),
    ("verifier", "judge", "workbench.speculation.verifiers.judge", "Judge"),
    ("verifier", "kseq", "workbench.speculation.verifiers.kseq", "KSeq"),
    ("verifier", "point", "workbench.speculation.verifiers.match", "PointMatch"),
    ("verifier", "rejection", "workbench.speculation.verifiers.rejection", "Rejection"),
    ("verifier", "seeded", "workbench.speculation.verifiers.match", "SeededMatch"),
    ("verifier", "typical", "workbench.speculation.verifiers.typical", "Typical"),
    ("policy", "streaming", "workbench.cache.methods.streaming", "StreamingLLM"),
    ("policy", "h2o", "workbench.cache.methods.h2o", "H2O"),
    ("policy", "adakv", "workbench.cache.methods.adakv", "AdaKV"),
    ("policy", "cam", "workbench.cache.methods.cam", "CaM"),
    ("policy", "merging", "workbench.cache.methods.merging", "Merging"),
    ("policy", "pyramidkv", "workbench.cache.methods.pyramidkv", "PyramidKV"),
    ("policy", "razor", "workbench.cache.methods.razor", "RazorAttention"),
    ("policy", "sentencekv", "workbench.cache.methods.sentencekv", "SentenceKV"),
    ("policy", "snapkv", "workbench.cache.methods.snapkv", "SnapKV"),
    ("quantizer", "paged", "workbench.cache.codecs.paged", "Paged"),
    ("quantizer", "mixed_kivi", "workbench.cache.codecs.mixed_kivi", "MixedKIVI"),
    ("quantizer", "kivi", "workbench.cache.codecs.kivi", "KIVI"),
    ("reader", "lserve", "workbench.cache.readers.lserve", "LServe"),
    ("cache", "stack", "workbench.cache.stack", "Stack"),
    ("scorer", "kolmogorov", "workbench.control.scorers.kolmogorov", "Kolmogorov"),
    ("scorer", "linear_head", "workbench.control.scorers.linear_head", "LinearHead"),
    ("scorer", "log_probability", "workbench.control.scorers.log_probability", "LogProbability"),
    ("scorer", "reward", "workbench.control.scorers.reward", "Reward"),
    ("scorer", "unit_tests", "workbench.control.scorers.unit_tests", "UnitTests"),
    ("constraint", "grammar", "workbench.control.constraints.grammars", "Grammar"),
    ("constraint", "json_schema", "workbench.control.constraints.grammars", "JSONSchema"),
    ("constraint", "python_monitor", "workbench.control.constraints.python_monitor", "PythonMonitor"),
    ("constraint", "regex", "workbench.control.constraints.grammars", "Regex"),
    # views in the order in which the app offers them
    ("view", "draft_tree", "workbench.views.tree", "draft_tree"),
    ("view", "cache_map", "workbench.views.cache_map", "cache_map"),
    ("view", "ledger_over_time", "workbench.views.cache", "ledger_over_time"),
    ("view", "bit_map", "workbench.views.bits", "bit_map"),
    ("view", "cache_footprint", "workbench.views.cache", "cache_footprint"),
    ("view", "acceptance", "workbench.views.acceptance", "acceptance"),
    ("view", "acceptance_length", "workbench.views.acceptance", "acceptance_length"),
    ("view", "divergence", "workbench.views.acceptance", "divergence"),
    ("view", "headroom", "workbench.views.headroom", "headroom"),
    ("view", "break_even", "workbench.views.break_even", "break_even"),
    ("view", "forwards_timeline", "workbench.views.forwards", "forwards_timeline"),
    ("view", "entropy", "workbench.views.signals", "entropy"),
    ("view", "signals", "workbench.views.signals", "signals"),
    ("view", "branch_diff", "workbench.views.branch", "branch_diff"),
    ("recipe", "acceptance", "workbench.training.acceptance", "acceptance"),
    ("recipe", "eagle", "workbench.training.eagle", "eagle"),
    ("recipe", "fspad", "workbench.training.eagle", "fspad"),
    ("recipe", "hydra", "workbench.training.heads", "hydra"),
    ("recipe", "judge", "workbench.training.judge", "judge"),
    ("recipe", "kangaroo", "workbench.training.kangaroo", "kangaroo"),
    ("recipe", "medusa", "workbench.training.heads", "medusa"),
    ("recipe", "target", "workbench.training.target", "target"),
    ("recipe", "target-long", "workbench.training.target", "target_long"),
    ("recipe", "draft", "workbench.training.draft", "draft"),
)

OTHERS = {  # what `workbench` offers beside the members, by module
    "workbench.api": ("custom_generate", "decode", "stream"),
    "workbench.cache.codecs.base": ("Quantizer",),
    "workbench.cache.readers.base": ("CacheReader", "PageView", "Reading"),
    "workbench.cache.plan": ("CacheMethod", "LayerView", "Merge", "Plan"),
    "workbench.control": ("scorers", "signals"),
    "workbench.control.gate": ("Gate",),
    "workbench.control.scorers.base": ("Scorer",),
    "workbench.control.constraints.base": ("Constraint",),
    "workbench.dashboard.serve": ("launch",),
    "workbench.decoders.base": ("Decoder",),
    "workbench.engine.sampling": ("Sampling",),
    "workbench.engine.toy": ("ToyModel",),
    "workbench.errors": ("BadInput", "BadTrace", "NumericalError", "Unsupported", "WorkbenchError"),
    "workbench.experiments.compare": ("Arm", "compare"),
    "workbench.experiments.fitting": ("fit_gate",),
    "workbench.experiments.headroom": ("Costs", "headroom"),
    "workbench.experiments.lossless": ("Verdict", "lossless"),
    "workbench.experiments.skipping": ("search_skip",),
    "workbench.models.loading": ("load", "register_model"),
    "workbench.report.capsule": ("open_capsule", "write_capsule"),
    "workbench.report.doctor": ("doctor",),
    "workbench.session": ("Session",),
    "workbench.speculation.drafters.base": ("Drafter", "RowDrafter"),
    "workbench.speculation.shapes.base": ("DraftShape",),
    "workbench.speculation.tree": ("DraftTree",),
    "workbench.speculation.verifiers.base": ("Verifier",),
    "workbench.trace": ("Trace",),
    "workbench.training.prompts": ("held_out_prompts",),
    "workbench.widgets": ("SessionWidget", "TraceWidget"),
}

INNER = {  # what the rooms offer besides to those who extend them, by module
    "workbench.control.constraints.base": ("Masks", "Matcher"),
    "workbench.cache.stack": ("as_stack",),
    "workbench.cache.protocol": ("CacheStore", "Segment"),
    "workbench.cache.store": ("PlainStore",),
    "workbench.control.gate": ("Reading",),
    "workbench.rounds.round": ("Round",),
    "workbench.rounds.search": ("begin", "each", "grow", "read", "settle", "win"),
    "workbench.rounds.state": ("Hypothesis", "Runner", "State"),
    "workbench.speculation.tree": ("DIST", "POINT"),
    "workbench.speculation.verifiers.base": ("Outcome",),
    "workbench.views.branch": ("BranchDiff",),
    "workbench.views.break_even": ("BreakEven", "break_even_numbers"),
    "workbench.views.figure": ("as_table", "description"),
}


def _by_name(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: module for module, found in table.items() for name in found}


_CLASSES = {found: module for family, _, module, found in MEMBERS if family in FAMILIES}
EXPORTS = dict(sorted((_CLASSES | _by_name(OTHERS)).items()))  # name -> module
PUBLIC = EXPORTS | _by_name(INNER)


def inside(package: str) -> dict[str, str]:
    """What is public in a package, and its module; functions are so in their own room alone."""
    known = EXPORTS if package == "workbench" else PUBLIC
    own = [(found, module) for family, _, module, found in MEMBERS if family in FUNCTIONS and package != "workbench"]
    return {name: module for name, module in (*known.items(), *own) if module.startswith(f"{package}.")}


def room(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: what is public in its modules, imported when it is first used."""
    public = EXPORTS if package == "workbench" else PUBLIC
    here = inside(package)

    def __getattr__(name: str) -> Any:
        if name == "__all__" and package != "workbench":
            return sorted(here)
        current = name if name in here else aliases.name(package, name, public)
        if current is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(public[current]), current)
        if name in here:
            setattr(import_module(package), name, value)
        return value

    return __getattr__
