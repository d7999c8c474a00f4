"""Cards: rows that several processes add at a time are all kept, each under a name that says how it was measured."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from difflesson.digits import checkpoints, sampling

ROOT = Path(__file__).resolve().parents[2]


def card(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_rows_that_are_added_at_the_same_time_are_all_kept(tmp_path):
    path = tmp_path / "mine.safetensors"
    checkpoints.write_card(path, {"task": "denoiser", "metrics": {"old": {"1": {"accuracy": 0.5}}}})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: checkpoints.add_to_card(path, f"setting {n % 4}", str(n), {"n": n}), range(40)))
    metrics = card(path)["metrics"]
    assert metrics.pop("old") == {"1": {"accuracy": 0.5}} and card(path)["task"] == "denoiser"
    assert metrics.keys() == {f"setting {n}" for n in range(4)}
    for n, rows in ((int(setting[-1]), rows) for setting, rows in metrics.items()):
        assert list(rows.items()) == [(str(k), {"n": k}) for k in range(n, 40, 4)]  # in the order of gamma
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.nightly
def test_rows_of_several_processes_are_all_kept(tmp_path):
    path = tmp_path / "mine.safetensors"
    code = "import sys; from pathlib import Path; from difflesson.digits.checkpoints import add_to_card\n"
    code += "for n in range(50): add_to_card(Path(sys.argv[1]), 'all', f'{int(sys.argv[2]) * 50 + n}', {})"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen([sys.executable, "-c", code, path, str(n)], env=variables) for n in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert list(card(path)["metrics"]["all"]) == [str(n) for n in range(200)]


def test_a_lock_that_a_killed_process_left_holds_nobody_up(tmp_path):
    path, lock = tmp_path / "mine.safetensors", tmp_path / "mine.json.lock"
    lock.touch()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    checkpoints.add_to_card(path, "setting", "1", {"n": 1})
    assert card(path) == {"metrics": {"setting": {"1": {"n": 1}}}} and not lock.exists()


def test_a_malformed_card_is_neither_overwritten_nor_left_locked(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match="^card .*mine.json must be a JSON object"):
        checkpoints.add_to_card(path, "setting", "1", {})
    assert path.with_suffix(".json").read_text() == "[]" and not (tmp_path / "mine.json.lock").exists()


def test_rows_of_other_precisions_stand_under_other_names(difflesson, monkeypatch, tmp_path):
    def generate(network, labels, gamma, **options):
        return -torch.ones(len(labels), 1, 28, 28)

    monkeypatch.setattr(sampling, "generate", generate)
    shipped = checkpoints.shipped("denoiser")
    (tmp_path / "own.safetensors").write_bytes(shipped.read_bytes())
    for precision in ("no", "bf16"):
        arguments = ("--network", "own.safetensors", "--count", 100, "--precision", precision, "--device", "cpu")
        assert difflesson("evaluate", *arguments, "--card").code == 0
    setting = "classifier-free, ddpm, 16 steps, 100 digits, seed 0, cpu, precision"
    assert card(tmp_path / "own.safetensors")["metrics"].keys() == {f"{setting} no", f"{setting} bf16"}
