"""Small traces by hand, in schema 2: one for each form in which something an engine may learn to do is drawn."""

from typing import Any

from workbench.trace import Trace

__all__ = ["FORMS", "canvas", "constraint", "decisions", "hypotheses", "layers", "of", "reads"]

HEADS, LAYERS, PROMPT = 2, 2, 3
WORDS = ("def", " area", "(", "r", "):", " return", " pi", " *", " r", "2")
Round = dict[str, Any]


def of(*rounds: Round, name: str = "by-hand", **more: Any) -> Trace:
    """A trace of these rounds, each what it adds to a plain one of `n` tokens (1); times, places and caches are filled
    in, the prefill comes first. `after`: events that follow the round."""
    facts = {"role": "target", "name": "by-hand", "layers": LAYERS, "kv_heads": HEADS, "head_dim": 4, "kv_bits": 16}
    log = [{"type": "run", "schema": 2, "id": "0123456789ab", "level": "default", "models": [facts],
            "decoder": {"family": "decoder", "name": name, "settings": {}}, "guarantee": "own", "cache": None,
            "sampling": {"temperature": 1.0}, "max_new_tokens": 10, "prompt_ids": [90, 91, 92],
            "prompt_text": "# geometry\n", **more}]  # fmt: skip
    done = 0
    for number, given in enumerate(({"n": 0, "mode": "prefill"}, *rounds)):
        made = {"n": 1, **given}
        n, after, columns = made.pop("n"), made.pop("after", ()), made.pop("tokens", {})
        held = PROMPT + done + n - 1
        event = {"type": "round", "round": number, "index": done, "mode": "plain", "drafted": 0, "accepted": 0,
                 "emitted": n, "depth": 0, "context": held + 1, "ms": {"target": 2.0, "total": 3.0},
                 "cache": {"target": {"live_slots": held, "payload": 16 * HEADS * held}}, **made}  # fmt: skip
        if n:
            own = {"token_id": [*range(done, done + n)], "text": [*WORDS[done : done + n]], "source": ["target"] * n}
            event["tokens"] = {**own, "entropy_raw_nats": [1.0 + k for k in range(n)], **columns}
        log += [event, *({**one, "round": number} for one in after)]
        done += n
    return Trace([*log, {"type": "end", "reason": "length"}])


def hypotheses() -> Trace:
    """Two rounds that keep three hypotheses and append nothing, then one that appends the winner's two tokens."""
    first = {"id": [1, 2, 3], "parent": [0, 0, 0], "depth": [1, 1, 1], "token_id": [0, 11, 12],
             "text": ["def", "class", "import"], "score": [-0.5, -0.9, -2.0], "role": ["beam"] * 3,
             "fate": ["live", "live", "pruned"]}  # fmt: skip
    second = {"id": [4, 5, 6], "parent": [1, 1, 2], "depth": [2, 2, 2], "token_id": [1, 13, 14],
              "text": [" area", " volume", " Shape"], "score": [-0.7, -1.1, -1.3], "role": ["beam"] * 3,
              "fate": ["live", "live", "pruned"]}  # fmt: skip
    won = {**{name: values[:2] for name, values in second.items()}, "fate": ["won", "pruned"]}
    return of({"n": 0, "mode": "search", "hypotheses": first}, {"n": 0, "mode": "search", "hypotheses": second},
              {"n": 2, "mode": "search", "hypotheses": won}, {}, name="search")  # fmt: skip


def constraint() -> Trace:
    """Four tokens under a grammar that leaves less and less."""
    return of(*({"tokens": {"allowed_count": [left], "allowed_mass": [mass], "cut_by": ["grammar"], "keep_size": [left],
                            "topk_raw": [[[k, 50], [0.6, 0.3]]], "topk_sampled": [[[k], [1.0]]]}}
                for k, (left, mass) in enumerate(((4000, 0.97), (120, 0.5), (7, 0.25), (1, 0.125)))))  # fmt: skip


def reads() -> Trace:
    """Rounds whose attention reads some of the pages that are held, in both layers; the third fetches one."""
    rounds = [{"reads": {"model": ["target"] * 2, "layer": [0, 1], "unit": ["pages"] * 2, "held": [16, 16],
                         "read": [read, read + 2], "bytes_read": [1024, 1024], "bytes_fetched": [fetched, 0]}}
              for read, fetched in ((4, 0), (6, 0), (8, 4096))]  # fmt: skip
    return of({}, *rounds)


def decisions() -> Trace:
    """A controller that looks at the entropy and acts at the second of three tokens."""
    signal = {"name": "entropy", "value": 3.41, "unit": "nats"}
    act = {
        "type": "decision",
        "controller": "budget gate",
        "signals": [signal],
        "threshold": 3.0,
        "action": "stop_draft",
    }
    return of({}, {"after": [act]}, {})


def canvas() -> Trace:
    """Four cells decided in three rounds, one of which takes back what it had decided; then they become text."""
    text = [*WORDS[:4]]
    states = (("masked", "fixed", "masked", "proposed"), ("masked", "fixed", "fixed", "fixed"),
              ("fixed", "fixed", "remasked", "fixed"), ("fixed",) * 4)  # fmt: skip

    def cells(state: tuple[str, ...]) -> dict[str, list]:
        there = [one in ("fixed", "proposed") for one in state]
        return {"position": [*range(PROMPT, PROMPT + 4)], "block": [0] * 4, "state": [*state],
                "token_id": [k if known else None for k, known in enumerate(there)],
                "text": [word if known else None for word, known in zip(text, there, strict=True)],
                "confidence": [0.75 if known else None for known in there]}  # fmt: skip

    held = [{"n": 0, "mode": "diffusion", "canvas": cells(state)} for state in states]
    return of(*held[:-1], {**held[-1], "n": 4}, {}, name="diffusion")


def layers() -> Trace:
    """Three tokens, two of them read before the last layer."""
    return of(*({"tokens": {"layers_run": [run], "exit_layer": [run - 1]}} for run in (2, 1, 1)))


FORMS = {one.__name__: one for one in (hypotheses, constraint, reads, decisions, canvas, layers)}
