"""Counter-based random numbers, the same in torch (`reference`) and inside Triton kernels (`kernel`)."""

from workbench_kernels.noise.reference import child_of, gumbel, gumbel_rows, launch_key, seed_of_sample, uniform

__all__ = ["child_of", "gumbel", "gumbel_rows", "launch_key", "seed_of_sample", "uniform"]
