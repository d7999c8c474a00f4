"""Logs of runs: rows of one setting and several seeds become one."""

import pytest

from difflesson.digits import runs


def test_rows_of_one_setting_are_averaged_and_their_errors_add_in_squares():
    rows = [
        {"way": "a", "gamma": 1.0, "seed": 0, "all": 0.2, "all_error": 0.03, "count": 10},
        {"way": "a", "gamma": 2.0, "seed": 0, "all": 0.7, "all_error": 0.05, "count": 10},
        {"way": "a", "gamma": 1.0, "seed": 1, "all": 0.4, "all_error": 0.04, "count": 10},
    ]
    found = runs.pooled(rows, ("way", "gamma"))
    assert list(found) == [("a", 1.0), ("a", 2.0)]
    assert found["a", 1.0]["all"] == pytest.approx(0.3) and found["a", 1.0]["count"] == 20
    assert found["a", 1.0]["all_error"] == pytest.approx(0.025)
    assert {k: v for k, v in rows[1].items() if k != "seed"} == found["a", 2.0]
