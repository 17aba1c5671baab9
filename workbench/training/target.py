"""The embedded target, in two stages.

Source of the second one, with its larger rotary base: "Effective Long-Context Scaling of Foundation Models".
"""

from dataclasses import replace

from workbench.training.stage import Stage


def target() -> Stage:
    """The embedded target's first stage: most windows are short."""
    return Stage(width=256, layers=8, heads=8, kv_heads=4, hidden=704)


def target_long() -> Stage:
    """Goes on from the first stage with a larger rotary base and long windows, the last ones at the full context."""
    return replace(
        target(),
        start="target",
        tokens=3_300_000,
        window=1024,
        full_share=0.25,
        rope_theta=200_000.0,
        muon_rate=0.008,
        adam_rate=1.2e-3,
        warmup=20,
        decay_share=0.7,
    )
