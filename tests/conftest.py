import math

import numpy as np
import pytest
import torch

# The networks are tiny, and pytest-xdist runs several processes.
torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch):
    """No slice is drawn, and slow is no fault."""
    picture = np.zeros((8, 80, 3), np.uint8)
    monkeypatch.setattr("lc_callback.callbacks.partition.draw_slices", lambda slices: picture)
    monkeypatch.setattr("lc_callback.callbacks.probe_callback.SECONDS_TO_SAY", math.inf)
