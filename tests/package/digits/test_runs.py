"""Logs of runs: rows of one setting and several seeds become one."""

import json

import pytest

from difflesson.digits import runs

ROWS = [
    {"part": "scale", "way": "a", "gamma": 1.0, "seed": 0, "all": 0.2, "all_error": 0.03, "count": 10},
    {"part": "scale", "way": "a", "gamma": 2.0, "seed": 0, "all": 0.7, "all_error": 0.05, "count": 10},
    {"part": "scale", "way": "a", "gamma": 1.0, "seed": 1, "all": 0.4, "all_error": 0.04, "count": 10},
    {"part": "when", "way": "a", "gamma": 1.0, "seed": 0, "low": -3.0, "all": 0.9, "all_error": 0.0, "count": 10},
]


def test_rows_that_differ_in_their_seed_are_averaged_and_their_errors_added_in_squares(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": ROWS}), encoding="utf-8")
    first, second = runs.pick(runs.rows(path), part="scale")
    assert (first["gamma"], first["count"], second["gamma"], second["count"]) == (1.0, 20, 2.0, 10)
    assert first["all"] == pytest.approx(0.3) and first["all_error"] == pytest.approx(0.025)
    assert second == ROWS[1]


def test_only_rows_with_the_settings_are_picked_and_no_two_settings_are_averaged():
    assert [row["all"] for row in runs.pick(ROWS, low=-3.0)] == [0.9]
    assert [row["part"] for row in runs.pick(ROWS, way="a")] == ["scale", "scale", "when"]
    with pytest.raises(ValueError, match="no row has the settings"):
        runs.pick(ROWS, gamma=3.0)


@pytest.mark.parametrize("name", ["guidance", "classifier", "words"])
def test_what_a_shipped_sweep_measured_is_no_setting_and_a_setting_no_measure(name):
    rows = runs.rows(name)
    for row in rows:
        measured = row.keys() - {"seed", "count", *runs.SETTINGS}
        assert all(isinstance(row[name], float | int) for name in measured), row
        assert {name.removesuffix("_error") for name in measured} <= measured
    assert len(runs.pick(rows)) == len({tuple(row.get(name) for name in runs.SETTINGS) for row in rows}) < len(rows)
