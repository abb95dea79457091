"""The running mean: every pair of every earlier step counts once, and survives a checkpoint to the bit."""

import json
import math

import pytest

from sail.core.errors import UserError
from sail.objectives.baseline import RunningMean


def test_the_first_step_uses_the_start_and_later_ones_the_mean():
    mean = RunningMean()
    assert mean.value(start=0.69) == 0.69
    mean = mean.update(3.0, 2)
    assert mean == RunningMean(2, 1.5) and mean.value(start=0.69) == 1.5


def test_how_pairs_are_cut_into_steps_does_not_matter():
    values = [0.3, 0.9, 0.1, 2.5, 0.7]
    one_by_one = RunningMean()
    for value in values:
        one_by_one = one_by_one.update(value, 1)
    at_once = RunningMean().update(sum(values[:2]), 2).update(sum(values[2:]), 3)
    assert one_by_one.count == at_once.count == 5
    assert one_by_one.mean == pytest.approx(sum(values) / 5, abs=1e-15)
    assert at_once.mean == pytest.approx(one_by_one.mean, abs=1e-15)


def test_a_step_without_pairs_changes_nothing():
    assert RunningMean().update(0.0, 0) == RunningMean()
    assert RunningMean(4, 0.5).update(0.0, 0) == RunningMean(4, 0.5)


def test_it_survives_json_to_the_bit():
    mean = RunningMean().update(math.pi, 7).update(math.e, 3)
    assert RunningMean.from_dict(json.loads(json.dumps(mean.to_dict()))) == mean


@pytest.mark.parametrize(
    "record", [{}, {"count": -1, "mean": 0.0}, {"count": 1.5, "mean": 0}, {"count": 1, "mean": "x"}]
)
def test_a_damaged_record_is_refused(record):
    with pytest.raises(UserError, match="file is damaged"):
        RunningMean.from_dict(record)


def test_a_step_that_diverged_does_not_enter_the_mean():
    with pytest.raises(UserError, match="nan"):
        RunningMean(4, 0.5).update(math.nan, 2)
