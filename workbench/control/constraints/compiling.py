"""In a process of its own, so that it may be killed: read a pickled (grammar, texts of the tokens, seconds of processor
time) from standard input, compile it, make its first mask, and say in JSON what is wrong. Imports nothing of the
package."""

import contextlib
import json
import pickle
import signal
import sys

MEMORY = 1 << 30  # bytes of address space
STATES = 50_000  # of a lexer, of one or two kilobytes


class Wrapper:
    """A vocabulary as llguidance takes it: the texts of all ids, and one more for the end."""

    bos_token_id = None

    def __init__(self, pieces):
        self.tokens = [*pieces, b""]
        self.eos_token_id = len(pieces)
        self.special_token_ids = [len(pieces)]

    def __call__(self, text):
        return []


def vocabulary(pieces):
    """The llguidance tokenizer of a vocabulary."""
    import llguidance

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapper(pieces)), n_vocab=len(pieces) + 1)


def matcher(tokenizer, grammar):
    """The llguidance matcher of a grammar, with its first mask made, and what is wrong with it."""
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=STATES, verbose_errors=False)
    made = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not made.is_error():
        tried = made.deep_copy()
        tried.compute_bitmask()
        return made, tried.get_error() if tried.is_error() else ""
    return made, made.get_error()


if __name__ == "__main__":
    grammar, pieces, seconds = pickle.load(sys.stdin.buffer)
    tokenizer = vocabulary(pieces)  # its time is not the grammar's
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-6))  # the system ends it then
    print("ready", flush=True)
    print(json.dumps(matcher(tokenizer, grammar)[1][:2000]), flush=True)
