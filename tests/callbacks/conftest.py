import math

import pytest
from all_kinds import blank


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("lc_callback.callbacks.partition.draw_slices", blank)
    monkeypatch.setattr("lc_callback.callbacks.probe_callback._SECONDS_TO_WARN", math.inf)  # slow is no fault
