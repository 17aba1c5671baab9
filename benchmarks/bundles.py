"""What several sequences in one forward save: tokens of eight prompts, or of eight samples of one prompt, bundled and
one after the other.

    python benchmarks/bundles.py [--sequences 8] [--tokens 32] [--repeats 5] [--out benchmarks/results/bundles.json]

On the embedded target; seconds behind the prompts, both ways in turn, the least of `repeats`.
"""

import time
from functools import partial

import workbench as wb
from benchmarks.runs import finish, ids, options
from workbench.engine.bundle import together

ARMS = {
    "plain": {},
    "plain, level off": {"level": "off"},
    "H2O 256": {"cache": wb.H2O(budget=256)},
    "KIVI 4": {"cache": wb.KIVI()},
    "speculative": {"decoder": wb.Speculative()},
}
SAMPLES = {"one prompt, 8 samples": {"temperature": 0.8}}
CONTEXTS = (64, 1000)


def spent(lm, prompts: list[list[int]], tokens: int, bundled: bool, **how) -> tuple[float, list[list[int]]]:
    """Seconds from the first token of every prompt to the last of all, and the texts."""
    decoder = how.pop("decoder", None)
    sessions = [wb.Session(lm, prompt, decoder, max_new_tokens=tokens, ignore_eos=True, sample=i, **how)
                for i, prompt in enumerate(prompts)]  # fmt: skip
    if bundled and all(prompt == prompts[0] for prompt in prompts):
        sessions[0].read_prompt(sessions[1:])
    together([partial(session.run, rounds=1) for session in sessions])
    start = time.perf_counter()
    if bundled:
        together([session.run for session in sessions])
    else:
        for session in sessions:
            session.run()
    return time.perf_counter() - start, [session.state.new_tokens for session in sessions]


def main() -> None:
    given = options(__doc__, sequences=8, tokens=32, repeats=5).parse_args()
    lm = wb.load("embedded")
    rows = []
    for context in CONTEXTS:
        prompts = ids(lm, given.sequences, context)
        best, texts = {}, {}
        for _ in range(given.repeats):
            for arm, how in (ARMS | SAMPLES).items():
                asked = [prompts[0]] * given.sequences if arm in SAMPLES else prompts
                for bundled in (False, True):
                    seconds, found = spent(lm, asked, given.tokens, bundled, **how)
                    best[arm, bundled] = min(best.get((arm, bundled), seconds), seconds)
                    texts[arm, bundled] = found
        for arm in ARMS | SAMPLES:
            lone, many = best[arm, False], best[arm, True]
            new = given.sequences * given.tokens
            same = sum(map(list.__eq__, texts[arm, False], texts[arm, True]))
            rows.append({"arm": arm, "context": context, "lone_ms_per_token": 1000 * lone / new,
                         "bundled_ms_per_token": 1000 * many / new, "ratio": lone / many,
                         "same_texts": same})  # fmt: skip
    finish(lm, rows, given.out, sequences=given.sequences, tokens=given.tokens, repeats=given.repeats)


if __name__ == "__main__":
    main()
