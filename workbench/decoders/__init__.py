"""One file per decoder. Importing this package registers them all."""

from workbench.decoders.autoregressive import Autoregressive
from workbench.decoders.base import Decoder
from workbench.decoders.entropy_adaptive import EntropyAdaptive
from workbench.decoders.mirostat import Mirostat
from workbench.decoders.pearl import Pearl
from workbench.decoders.speculative import Speculative
from workbench.rounds import Round, Runner, State

__all__ = [
    "Autoregressive",
    "Decoder",
    "EntropyAdaptive",
    "Runner",
    "Mirostat",
    "Pearl",
    "Round",
    "Speculative",
    "State",
]
