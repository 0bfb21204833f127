import pytest

from lc_callback.run.schedule import POINTS_PER_DECADE, Schedule, is_log_step


def due_steps(schedule, last):
    return [step for step in range(last + 1) if schedule.due(step - 1, step)]


def test_log_steps_are_the_rounded_powers():
    for points_per_decade in (1, 3, 10, 25):
        expected = {0} | {round(10 ** (k / points_per_decade)) for k in range(4 * points_per_decade + 1)}
        assert {step for step in range(10_001) if is_log_step(step, points_per_decade)} == expected


def test_a_decade_has_ten_log_steps_however_late():
    assert POINTS_PER_DECADE == 10
    assert sum(is_log_step(step) for step in range(1001, 10_001)) == 10
    assert is_log_step(10**9)
    assert not is_log_step(10**9 + 1)


def test_negative_steps_are_none():
    assert not any(is_log_step(step) for step in (-1, -10))


@pytest.mark.parametrize("schedule", [Schedule(), Schedule("log"), Schedule(schedule=None)])
def test_log_is_the_default_and_closes(schedule):
    assert due_steps(schedule, 20) == [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20]
    assert schedule.closes
    assert schedule.text == "schedule='log'"


@pytest.mark.parametrize(
    ("schedule", "steps", "text"),
    [
        (Schedule([0, 7, 3]), [0, 3, 7], "schedule=[0, 7, 3]"),
        (Schedule((5,)), [5], "schedule=(5,)"),
        (Schedule(range(0, 9, 4)), [0, 4, 8], "schedule=range(0, 9, 4)"),
        (Schedule(every_n_train_steps=4), [0, 4, 8], "every_n_train_steps=4"),
        (Schedule(every_n_train_steps=1), list(range(10)), "every_n_train_steps=1"),
        (Schedule(every_n_epochs=2), [0], "every_n_epochs=2"),
    ],
)
def test_other_schedules_take_their_steps_only(schedule, steps, text):
    assert due_steps(schedule, 9) == steps
    assert not schedule.closes
    assert schedule.text == text


def test_a_function_decides():
    schedule = Schedule(lambda step: step in (2, 5))
    assert due_steps(schedule, 9) == [2, 5]
    assert not schedule.closes


@pytest.mark.parametrize("start", [0, 1])
def test_no_scheduled_step_is_lost_when_a_batch_takes_two(start):
    schedule = Schedule([4, 7])
    looks = [(step - 2, step) for step in range(start + 2, 12, 2)]
    assert [step for after, step in looks if schedule.due(after, step)] == ([4, 8] if start == 0 else [5, 7])


def test_a_step_is_due_at_one_look_only():
    schedule = Schedule([4])
    assert schedule.due(3, 4)
    assert not schedule.due(4, 4)
    assert not schedule.due(4, 9)


def test_epochs():
    schedule = Schedule(every_n_epochs=3)
    assert [epoch for epoch in range(1, 10) if schedule.due_after_epoch(epoch)] == [3, 6, 9]
    assert not any(Schedule().due_after_epoch(epoch) for epoch in range(1, 10))


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "log", "every_n_train_steps": 5},
        {"schedule": [1], "every_n_epochs": 5},
        {"every_n_train_steps": 2, "every_n_epochs": 5},
    ],
)
def test_two_ways_at_once_are_an_error_that_shows_both(arguments):
    with pytest.raises(ValueError, match="only one of `schedule`, `every_n_train_steps`, `every_n_epochs`") as error:
        Schedule(**arguments)
    for name, value in arguments.items():
        assert f"`{name}={value!r}`" in str(error.value)


@pytest.mark.parametrize("name", ["every_n_train_steps", "every_n_epochs"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_a_period_must_be_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer, but got {value!r}"):
        Schedule(**{name: value})


@pytest.mark.parametrize("schedule", ["linear", "", [], 5, {1, 2}, [1, -2], [1.0], [True], ["1"], [[1]]])
def test_a_wrong_schedule_says_what_is_possible(schedule):
    with pytest.raises(ValueError, match="`schedule` must be 'log', a non-empty list of steps >= 0, or a function"):
        Schedule(schedule)


NOT_OF_ONE_STEP = {
    "two arguments": lambda step, epoch: True,
    "no argument": lambda: True,
    "by name only": lambda *, step: True,
    "a second one by name": lambda step, *, epoch: True,
    "a method": Schedule().due,
}


@pytest.mark.parametrize("name", NOT_OF_ONE_STEP)
def test_a_function_that_does_not_take_one_step_is_refused(name):
    with pytest.raises(ValueError, match=r"`schedule` must be .* or a function step -> bool, but got .*\(.*argument"):
        Schedule(NOT_OF_ONE_STEP[name])


def test_a_function_that_takes_one_step_is_not_called_to_see_that():
    called = []
    for schedule in (
        called.append,
        lambda step, every=5: called.append(step),
        lambda *steps: called.append(steps),
        {3}.__contains__,
        bool,
    ):
        Schedule(schedule)
    assert called == []
