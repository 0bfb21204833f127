"""The plugin's own summary: the events of a run so far, as JSON, in TensorBoard's event file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lc_callback.tensorboard.names import EVENTS_TAG, PLUGIN_NAME

__all__ = ["events_summary"]

#: Of the events that travel, so that a run that finds and withdraws for ever does not fill its event file.
_MOST_EVENTS = 400


def events_summary(events: Sequence[Mapping[str, Any]]) -> Any:
    """A ``Summary`` protocol buffer with a list of events.

    TensorBoard keeps few of many summaries, and always the last one. So each has all events so far.

    Args:
        events: fields of each event, as in a line of ``events.jsonl``, in their order. Of more than 400 the first are
            left out.

    Example::

        >>> from lc_callback.tensorboard.summary import events_summary
        >>> summary = events_summary([{"at": 9, "what": "found", "kind": "migration_start", "step": 5}])
        >>> summary.value[0].tag, summary.value[0].metadata.plugin_data.plugin_name
        ('lc_dynamics/events', 'lc_dynamics')
    """
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    text = json.dumps({"version": 1, "events": [dict(event) for event in events[-_MOST_EVENTS:]]})
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=b"1"),
        data_class=DATA_CLASS_TENSOR,
        summary_description="Transitions of the run, for the Dynamics tab.",
    )
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    return Summary(value=[Summary.Value(tag=EVENTS_TAG, metadata=metadata, tensor=tensor)])
