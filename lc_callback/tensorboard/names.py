"""The names that the two sides of the plugin share: what writes its summaries, and what reads them."""

from __future__ import annotations

__all__ = ["EVENTS_TAG", "PLUGIN_NAME", "WHATS"]

#: Under which TensorBoard knows the plugin; part of its addresses.
PLUGIN_NAME = "lc_dynamics"
#: Tag of the summary with all events of a run so far.
EVENTS_TAG = "lc_dynamics/events"
#: What an event can be, as in :attr:`lc_callback.detection.transitions.PhaseEvent.what`.
WHATS = frozenset({"found", "confirmed", "doubted", "moved", "updated", "withdrawn"})
