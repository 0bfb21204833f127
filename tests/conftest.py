import math
import random

import numpy as np
import pytest
import torch

# The networks are tiny, and pytest-xdist runs several processes.
torch.set_num_threads(1)


MANY = 3  # variations of a test; of more, each third is in the quick run


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Slow, and so left to `make test-all`: what needs a browser; all but each third variation where there are many."""
    quick = {}
    for item in items:
        if "chromium" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            quick.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for variations in quick.values():
        if len(variations) > MANY:
            for i, item in enumerate(variations):
                if i % 3:
                    item.add_marker(pytest.mark.slow)


class TickingClock:
    """A microsecond passes at each look: no warning, line or picture depends on how fast the machine is."""

    def __init__(self) -> None:
        self.looks = 0

    def perf_counter(self) -> float:
        self.looks += 1
        return 1e-6 * self.looks


@pytest.fixture(autouse=True)
def seed_of_the_tests():
    """Each test makes the same networks whether it runs alone, with others or on another process."""
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats the stack for each device not in use
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def clock_of_the_tests(monkeypatch):
    """What the callbacks take for the time; a test that is about time sets a clock of its own."""
    monkeypatch.setattr("lc_callback.callbacks.clock.time", TickingClock())


@pytest.fixture
def looks_into_compiled_modules():
    """What torch before 2.6 cannot; that such modules are refused there is a test in tests/isolation."""
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("torch before 2.6 cannot look into compiled modules")


@pytest.fixture
def undrawn(monkeypatch):
    """No slice is drawn, and slow is no fault."""
    picture = np.zeros((8, 80, 3), np.uint8)
    monkeypatch.setattr("lc_callback.callbacks.partition.draw_slices", lambda slices: picture)
    monkeypatch.setattr("lc_callback.callbacks.loop.SECONDS_TO_SAY", math.inf)


@pytest.fixture
def no_timeline(monkeypatch):
    """No timeline is drawn: most of the time of a short run goes into it."""
    from made_up import leave_out_pictures  # which imports Lightning

    leave_out_pictures(monkeypatch)
