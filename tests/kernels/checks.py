"""Shared checks of the kernel tests: closeness with its figures, and guard zones."""

import torch

GUARD = 64


def assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Equal infinities and NaNs, and |got - want| <= tolerance * max(1, |want|); says the largest and RMS error."""
    got, want = got.double().cpu(), want.double().cpu()
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    odd = ~want.isfinite()
    assert torch.equal(odd, ~got.isfinite()), f"{name}: infinities or NaNs at different places"
    assert torch.equal(got[odd].nan_to_num(nan=0.5), want[odd].nan_to_num(nan=0.5)), f"{name}: other infinities"
    if want[~odd].numel():
        scaled = (got[~odd] - want[~odd]).abs() / want[~odd].abs().clamp_min(1)
        rms = scaled.square().mean().sqrt()
        assert scaled.max() <= tolerance, f"{name}: error {scaled.max():.3g} (RMS {rms:.3g}), tolerance {tolerance:.3g}"


class Guarded:
    """A tensor in the middle of a larger NaN-filled one: a stray load poisons the result, a stray store shows."""

    def __init__(self, tensor: torch.Tensor):
        self.around = torch.full((tensor.numel() + 2 * GUARD,), torch.nan, dtype=tensor.dtype, device=tensor.device)
        self.inside = self.around[GUARD:-GUARD].view(tensor.shape)
        self.inside.copy_(tensor)

    def assert_untouched(self) -> None:
        pads = torch.cat([self.around[:GUARD], self.around[-GUARD:]])
        assert pads.isnan().all(), "a kernel wrote outside its tensor"
