"""A number that is not finite must not look like one, alone or among others."""

import math

import numpy as np
import pytest

from worldsim import NotMeasurable, Score
from worldsim.errors import PluginError
from worldsim.score import score_with


class Giving:
    """A metric that gives what it is given."""

    def __init__(self, given):
        self.given = given

    def score(self, truth, prediction, model):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def scored(given):
    return score_with("giving", Giving(given), None, None, None)


@pytest.mark.trial(7)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_not_measurable(value):
    one = scored({"a": Score(value, better="higher", n=7, failed=2)})["a"]
    assert math.isnan(one.value)
    assert one.reason == f"it is {value}"
    assert (one.better, one.n, one.failed) == ("higher", 7, 2)


@pytest.mark.trial(7)
def test_a_curve_without_any_number_says_so_and_one_that_ends_early_stands():
    lost = scored({"a": Score(np.full(3, math.nan), dims=("time",), n=5, failed=5)})["a"]
    assert lost.reason == "5 of 5 rollouts failed"
    empty = scored({"a": Score(np.full(3, math.nan), dims=("time",))})["a"]
    assert empty.reason == "none of it is finite"
    short = scored({"a": Score(np.array([1.0, math.nan]), dims=("time",), failed=1)})["a"]
    assert short.reason == ""
    nothing = scored({"a": Score(np.zeros((0, 2)), dims=("bar", "end"))})["a"]
    assert nothing.reason == ""


def test_what_cannot_be_measured_keeps_its_reason():
    assert scored(NotMeasurable("too few"))["giving"].reason == "too few"
    with pytest.raises(PluginError, match="must return a mapping"):
        scored([1.0])
    with pytest.raises(PluginError, match=r"dims \(\) but shape"):
        scored({"a": Score(np.zeros(3))})
