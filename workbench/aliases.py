"""Names of version 0.1 that have another name now: the one table, and what makes the old ones work.

An old name works as before and warns once, with its new name. `docs/migrating.md` is written from this table.
"""

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any

NAMES = {  # of `workbench` and its rooms
    "CachePolicy": "CacheMethod", "Keyed": "SeededMatch", "Lane": "Runner", "RoundLog": "Round",
}  # fmt: skip

HOMES = {  # names that have another room now, by the old one
    "workbench.decoders": ("Round", "Runner", "State"),
    "workbench.speculation": ("search_skip",),
    "workbench.speculation.drafters": ("search_skip",),
}

CLASSES = {  # that have another name or module now, by the old one
    f"workbench.speculation.heads.modules.{old}": f"workbench.speculation.drafters.{new}"
    for old, new in {
        "Block": "eagle.Block", "Eagle": "eagle.EagleLayer", "Hydra": "hydra.HydraHeads",
        "Medusa": "medusa.MedusaHeads", "Residual": "medusa.Residual",
    }.items()
}  # fmt: skip

MEMBERS = {("verifier", "keyed"): "seeded"}

PARAMETERS = {  # of members, by family and name
    ("decoder", "entropy_adaptive"): {"tau": "threshold"},
    ("drafter", "aded"): {"least": "min_prob"},
    ("drafter", "copyspec"): {"gram": "ngram"},
    ("drafter", "prompt_lookup"): {"gram": "ngram"},
    ("shape", "adaptive_confidence"): {"most": "max_length"},
    ("shape", "confidence"): {"most": "max_length"},
    ("shape", "del"): {"most": "max_length"},
    ("shape", "dyspec"): {"nodes": "max_nodes"},
    ("shape", "eagle2"): {"nodes": "max_nodes"},
    ("shape", "heuristic"): {"most": "max_length"},
    ("shape", "sequoia"): {"nodes": "max_nodes"},
    ("shape", "specdec"): {"least": "min_length", "most": "max_length"},
}

RUN = {"claim": "guarantee"}  # keys of a trace's run event; old traces are read in the present words
VALUES = {"guarantee": {"own_law": "own", "seed": "seeded"}}  # values there
RESULTS = {  # what Python reads from results; the old ones are gone
    "trace.run['claim']": "trace.run['guarantee']",
    "trace.summary()['claim']": "trace.summary()['guarantee']",
    "Verdict.claim_greedy": "Verdict.guarantee_greedy",
    "Verdict.claim_sampled": "Verdict.guarantee_sampled",
}

METHODS = {  # what classes of packages outside define, by their base; one that defines an old one is refused
    "Decoder": {"round": "decode_round", "claim": "guarantee", "lanes": "runners", "reader": "observer"},
    "Drafter": {
        **{"read": "observe", "settle": "on_verified", "lanes": "runners", "reach": "max_depth"},
        **dict.fromkeys(("has_rows", "has_features", "has_exits", "branches"), "gives"),
        **dict.fromkeys(("wants_hidden", "wants_logits", "wants_states"), "needs"),
    },
    "DraftShape": {
        **dict.fromkeys(("needs_rows", "needs_confidence", "needs_features", "needs_exits", "branches"), "needs"),
        "independent": "gives",
    },
    "Verifier": {"claim": "guarantee", "appraise": "score_hidden", "wants_hidden": "needs", "coupled": "gives"},
    "CacheMethod": {"needs_mass": "needs", "slot_positions": "needs", "keep": "plan"},
}
ARGUMENTS = {"log": "r", "growth": "builder", "coupled": "seeded"}  # of those methods

MOVED = (  # modules that kept their names: from, to, which
    ("workbench", "workbench.report", "capsule headline terminal"),
    ("workbench.engine", "workbench.models", "adapter checkpoint digest hub loading probing progress"),
    ("workbench.engine", "workbench.device", "fusion graph"),
    ("workbench.pretrained", "workbench.training", "corpus export prompts"),
)
MODULES = {f"{old}.{name}": f"{new}.{name}" for old, new, names in MOVED for name in names.split()} | {
    "workbench.bits": "workbench.cache.codecs",  # a package, and all that lies below it
    "workbench.cache.maintenance": "workbench.cache.apply",
    "workbench.cache.methods.base": "workbench.cache.plan",
    "workbench.cache.policies.base": "workbench.cache.plan",
    "workbench.cache.policies": "workbench.cache.methods",
    "workbench.cache.static": "workbench.device.store",
    "workbench.catalog": "workbench.report.catalogue",
    "workbench.decoders.device": "workbench.device.round",
    "workbench.diagnosis": "workbench.report.doctor",
    "workbench.engine.device_law": "workbench.device.sampling",
    "workbench.engine.noise": "workbench_kernels.noise.reference",
    "workbench.engine.device_model": "workbench.device.model",
    "workbench.engine.device_round": "workbench.device.forward",
    "workbench.lab": "workbench.cli.lab",
    "workbench.operations": "workbench_kernels.selftest.operations",
    "workbench.pretrained.checkpoint": "workbench.training.fit",
    "workbench.pretrained.evaluate": "workbench.training.export",
    "workbench.pretrained.train": "workbench.training.stage",
    "workbench.selftest": "workbench_kernels.selftest",
    "workbench.speculation.growth": "workbench.speculation.tree_builder",
    "workbench.speculation.heads.adapter": "workbench.speculation.drafters.kangaroo",
    "workbench.speculation.heads.judge": "workbench.speculation.verifiers.judge",
    "workbench.speculation.training": "workbench.training",
    "workbench.trace.laws": "workbench.trace.distributions",
}


class Renamed(FutureWarning):
    """An old name was used; the message says the new one."""


_told: set[str] = set()


def tell(old: str, new: str) -> None:
    """Warn, once for each old name, at the line outside this package that used it."""
    if old in _told:
        return
    _told.add(old)
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("workbench", "importlib"):
        frame = frame.f_back
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(f"{old} is called {new} since workbench 0.2; see docs/migrating.md", Renamed, *place)


def name(package: str, old: str, public: Mapping[str, str]) -> str | None:
    """The present name of what a package once offered under another, or had in it; public: names and their modules."""
    new = NAMES.get(old, old)
    elsewhere = new in HOMES.get(package, ())
    if new not in public or not (elsewhere or new != old and public[new].startswith(f"{package}.")):
        return None
    tell(f"{package}.{old}", f"{public[new]}.{new}" if elsewhere else new)
    return new


def moved(module: str, old: str) -> Any:
    """The class that a module once held under a name. Raises AttributeError for any other name."""
    new = CLASSES.get(f"{module}.{old}")
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {old!r}")
    tell(f"{module}.{old}", new)
    place, _, present = new.rpartition(".")
    return getattr(import_module(place), present)


def member(family: str, old: str) -> str:
    """The present name of a member; names that are not old are given back."""
    if (family, old) in MEMBERS:
        tell(f"{family} {old!r}", repr(MEMBERS[family, old]))
    return MEMBERS.get((family, old), old)


def parameters(cls: type) -> Mapping[str, str]:
    """Old names of a declared class's parameters, and the present ones."""
    return PARAMETERS.get((cls.family, cls.declared_name), {})


def renamed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their present names; both names of one parameter are left to whoever refuses what it does not know."""
    known, found = parameters(cls), {}
    for key, value in values.items():
        new = known.get(key) if isinstance(key, str) else None
        if new is not None and new not in values:
            tell(f"{cls.family} {cls.declared_name!r}: {key}", new)
            key = new
        found[key] = value
    return found


def refuse_old(cls: type) -> None:
    """Raise BadInput for a class that was written for version 0.1: it would be asked for methods that it lacks."""
    from workbench.errors import BadInput

    bases = cls.__mro__[1:]
    known = {old: new for base in bases for old, new in METHODS.get(base.__name__, {}).items()}
    for name, value in vars(cls).items():
        code = getattr(value, "__code__", None) if any(hasattr(base, name) for base in bases) else None
        takes = code.co_varnames[: code.co_argcount] if code else ()
        old = next((argument for argument in takes if argument in ARGUMENTS), None)
        if name in known or old:
            now = (
                f"{name}, which is {known[name]}"
                if name in known
                else f"{name}(…, {old}, …), which takes {ARGUMENTS[old]}"
            )
            raise BadInput(f"{cls.__name__} was written for workbench 0.1: it defines {now} now; see docs/migrating.md")


class _Moved(MetaPathFinder, Loader):
    """Imports a module under its old name: the very module that has the new one."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        for old, new in MODULES.items() if fullname.startswith("workbench.") else ():
            if fullname == old or fullname.startswith(f"{old}."):
                tell(old, new)
                module = import_module(new + fullname[len(old) :])
                state = module, module.__spec__
                return ModuleSpec(fullname, self, loader_state=state, is_package=hasattr(module, "__path__"))
        return None

    def create_module(self, spec: ModuleSpec) -> Any:
        return spec.loader_state[0]

    def exec_module(self, module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state[1]  # its own again

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` of an old name runs."""
        own = self.find_spec(fullname).loader_state[1]
        return own.loader.get_code(own.name)


def install() -> None:
    """Let the old module paths be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
