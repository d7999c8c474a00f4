"""A training run killed a dozen times, some of them inside a save, ends in the same bytes. For `make soak`."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difflesson.digits import checkpoints

ROOT = Path(__file__).resolve().parents[2]

# Each step and each save takes a while, so that kills fall into both; it says when the first step begins.
CHILD = """
import sys, time
from pathlib import Path
from difflesson.digits import checkpoints, recipes, training

def slow_step(made, step, original=training.learning_rate):
    print("step", step, flush=True)
    time.sleep(0.02)
    return original(made, step)

def slow_save(tensors, path, metadata, original=checkpoints.save_file):
    original(tensors, path, metadata)
    time.sleep(0.02)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    time.sleep(0.02)
    Path(path).write_bytes(content)

training.learning_rate, checkpoints.save_file = slow_step, slow_save
arguments = (("widths", (8, 16)), ("embedding", 16))
made = recipes.recipe("denoiser", data="embedded", steps=60, batch=16, warmup=2, arguments=arguments)
training.train(made, Path(sys.argv[1]), device="cpu", precision="no", progress=False, save_every=2)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_twelve_kills_at_random_moments_change_no_bit_and_leave_no_file(tmp_path):
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    variables, draw, seen = os.environ | threads | {"PYTHONPATH": str(ROOT)}, random.Random(0), []

    def start(folder: str):
        command = [sys.executable, "-c", CHILD, tmp_path / folder]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)

    state = tmp_path / "killed" / "denoiser-state.safetensors"
    for _ in range(12):
        child = start("killed")
        assert child.stdout.readline().startswith("step")
        try:
            child.wait(draw.uniform(0.05, 0.6))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it should have been killed before its end"
        child.stdout.close()
        seen.append(checkpoints.load_tensors(state)[1]["step"] if state.exists() else 0)
    assert seen == sorted(seen) and len(set(seen)) > 5  # never backwards
    for folder in ("killed", "whole"):
        assert start(folder).communicate() and sorted(p.name for p in (tmp_path / folder).iterdir()) == [
            "denoiser.json",
            "denoiser.safetensors",
        ]
    killed, whole = ((tmp_path / folder / "denoiser.safetensors").read_bytes() for folder in ("killed", "whole"))
    assert killed == whole
