"""Leave no trace: measuring a model, and giving everything back as it was."""

from lc_callback.isolation.context import fixed_rng, untouched

__all__ = ["fixed_rng", "untouched"]
