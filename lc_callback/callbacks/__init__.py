"""The Lightning callbacks: each its arguments and its measure, on the life cycle of :class:`ProbeCallback`."""

from lc_callback.callbacks.local_complexity import LocalComplexityCallback
from lc_callback.callbacks.probe_callback import Network, ProbeCallback

__all__ = ["LocalComplexityCallback", "Network", "ProbeCallback"]
