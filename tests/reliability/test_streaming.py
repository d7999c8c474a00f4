"""Many digits in one file: whatever kills a run, wherever, the file ends in the bytes of a run that nobody killed."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflesson.digits import checkpoints, data, sampling, streaming
from tests.oracles.small_digits import save_small

ROOT = Path(__file__).resolve().parents[2]
COUNT, FIRST, CHUNK, SIZE = 23, 100, 5, 4
LABELS = torch.arange(COUNT) % 10


class Killed(BaseException):
    """What no handler expects."""


def drawn(index: torch.Tensor) -> torch.Tensor:
    """Images that their index decides, from below -1 to above 1, as a network's are."""
    noise = [torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(i)) for i in index.tolist()]
    return torch.stack(noise) * 0.7


def store(path: Path, draw=drawn, **changes) -> int:
    about = {"gamma": 2.0, "seed": 4}
    options = {"labels": LABELS, "first": FIRST, "size": SIZE, "chunk": CHUNK, "about": about} | changes
    return streaming.store(path, draw, **options)


@pytest.fixture
def whole(tmp_path) -> bytes:
    """The bytes of a run that nobody killed."""
    assert store(tmp_path / "whole.safetensors") == COUNT
    return (tmp_path / "whole.safetensors").read_bytes()


def test_the_file_holds_digits_labels_and_how_they_were_drawn_and_its_checksum_is_right(tmp_path, whole):
    tensors, about = checkpoints.load_tensors(tmp_path / "whole.safetensors")
    assert torch.equal(tensors["images"], data.to_pixels(drawn(torch.arange(FIRST, FIRST + COUNT))))
    assert torch.equal(tensors["labels"], LABELS) and tensors["images"].dtype == torch.uint8
    assert about | {"gamma": 2.0, "seed": 4, "first": FIRST, "count": COUNT, "chunk": CHUNK} == about
    assert load_file(tmp_path / "whole.safetensors").keys() == {"images", "labels"}  # anybody's reader
    for place in (-1, -COUNT * SIZE * SIZE - 8):
        path = tmp_path / "changed.safetensors"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place:][1:])
        with pytest.raises(ValueError, match="damaged or changed"):
            checkpoints.load_tensors(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["before", "in the middle of", "after"])
def test_a_run_killed_at_any_write_ends_in_the_same_bytes_and_draws_no_written_digit_again(
    tmp_path, monkeypatch, whole, share
):
    """Each run is killed one write later than the last: in digits, in their number, in the checksum."""
    original, path, killed = streaming._write, tmp_path / "killed.safetensors", 0
    for fatal in range(1, 2 * 5 + 2):  # five chunks, each with its number, and the checksum
        writes, asked = [], []

        def torn(file, place, content, writes=writes, fatal=fatal):
            writes.append(place)
            if len(writes) == fatal:
                original(file, place, content[: int(share * len(content))])
                raise Killed
            original(file, place, content)

        monkeypatch.setattr(streaming, "_write", torn)
        with pytest.raises(Killed):
            store(path)
        killed += 1
        assert not path.exists()
        if (fatal, share) != (11, 1):  # nobody takes a part for the whole
            with pytest.raises(ValueError, match="is not a readable|damaged or changed"):
                checkpoints.load_tensors(tmp_path / "killed.safetensors.part")
        monkeypatch.setattr(streaming, "_write", original)
        store(path, lambda index, asked=asked: asked.extend(index.tolist()) or drawn(index))
        assert path.read_bytes() == whole
        finished = (fatal - (share < 1)) // 2 * CHUNK
        assert asked == list(range(FIRST + min(finished, COUNT), FIRST + COUNT))
        path.unlink()
    assert killed == 11 and sorted(p.name for p in tmp_path.iterdir()) == ["whole.safetensors"]


def test_a_run_killed_again_and_again_goes_on_each_time_where_it_stopped(tmp_path, whole):
    path, asked, calls = tmp_path / "killed.safetensors", [], itertools.count()

    def draw(index):
        if next(calls) % 2:
            raise Killed
        asked.extend(index.tolist())
        return drawn(index)

    for _ in range(4):
        with pytest.raises(Killed):
            store(path, draw)
    assert store(path, draw) == 3 and path.read_bytes() == whole
    assert asked == list(range(FIRST, FIRST + COUNT))  # each of them once


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"about": {"gamma": 3.0, "seed": 4}}, r"gamma 2\.0, not 3\.0"),
        ({"about": {"gamma": 2.0, "seed": 4, "eta": 1}}, "eta None, not 1"),
        ({"about": {"gamma": 3.0, "seed": 5}}, r"gamma 2\.0, not 3\.0, seed 4, not 5"),
        ({"first": 0}, "first 100, not 0"),
        ({"labels": LABELS[:-1]}, "count 23, not 22"),
        ({"chunk": 6}, "chunk 5, not 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("state", ["a part", "the whole"])
def test_other_settings_are_refused_with_both_values_and_nothing_is_drawn_or_changed(tmp_path, state, changes, says):
    path = tmp_path / "digits.safetensors"

    def stops(index):
        if index[0] > FIRST + CHUNK and state == "a part":
            raise Killed
        return drawn(index)

    try:
        store(path, stops)
    except Killed:
        pass
    (there,) = tmp_path.iterdir()
    before = there.read_bytes()
    with pytest.raises(ValueError, match=f"^out must be a new file, {re.escape(str(there))} was drawn with {says};"):
        store(path, None, **changes)
    assert [*tmp_path.iterdir()] == [there] and there.read_bytes() == before


def test_a_finished_file_is_left_alone_by_the_same_command(tmp_path, whole):
    assert store(tmp_path / "whole.safetensors", None) == 0
    assert (tmp_path / "whole.safetensors").read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08" + bytes(7) + b"[1, 2]  ", None], ids=str)
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(tmp_path, content):
    content = save_small(tmp_path / "net.safetensors").read_bytes() if content is None else content
    for name in ("mine.safetensors", "mine.safetensors.part"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^out must be a new file, .*{name} (is there and is no file|was drawn)"):
            store(tmp_path / "mine.safetensors", None)
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()


def test_a_part_that_vanishes_while_more_is_drawn_is_an_error_and_no_file_with_a_hole(tmp_path):
    """As where two runs of one command share a file, and the other one finishes first."""

    def draw(index):
        if index[0] == FIRST + 2 * CHUNK:
            (tmp_path / "digits.safetensors.part").unlink()
        return drawn(index)

    with pytest.raises(OSError, match="digits.safetensors cannot be written: No such file or directory$"):
        store(tmp_path / "digits.safetensors", draw)
    assert [*tmp_path.iterdir()] == []


def test_digits_that_cannot_be_drawn_leave_no_file(tmp_path):
    def diverges(index):
        raise FloatingPointError("NaN")

    with pytest.raises(FloatingPointError):
        store(tmp_path / "digits.safetensors", diverges)
    assert [*tmp_path.iterdir()] == []


def test_a_disk_that_fills_in_the_middle_is_one_line_and_costs_no_written_digit(tmp_path, whole, full_disk):
    path, asked = tmp_path / "digits.safetensors", []
    with full_disk(len(whole) - 9 * SIZE * SIZE), pytest.raises(OSError) as error:  # the third chunk does not fit
        store(path)
    assert str(error.value) == f"{path} cannot be written: File too large"
    store(path, lambda index: asked.extend(index.tolist()) or drawn(index))
    assert path.read_bytes() == whole and asked == list(range(FIRST + 10, FIRST + COUNT))


def test_a_disk_without_room_is_noticed_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 300}))
    with pytest.raises(OSError, match="digits.safetensors cannot be written: the digits take 0 MB, and 0 MB are free$"):
        store(tmp_path / "digits.safetensors", None)
    with pytest.raises(OSError, match="x.safetensors cannot be written: .*file is not a folder$"):
        (tmp_path / "file").write_text("hello")
        store(tmp_path / "file" / "x.safetensors", None)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_where_there_is_no_terminal_a_line_a_minute_says_how_far_it_is_and_how_long_it_will_take(
    tmp_path, monkeypatch, capsys
):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(streaming.time, "monotonic", lambda: float(next(clock)))
    store(tmp_path / "digits.safetensors")
    assert capsys.readouterr().err.splitlines() == [
        "digits.safetensors: 10 of 23 digits, 0.125 a second, 1.7 min left",
        "digits.safetensors: 20 of 23 digits, 0.125 a second, 0.4 min left",
        "digits.safetensors: 23 of 23 digits, 0.115 a second, done",
    ]


# ---- several processes


@pytest.mark.parametrize("world", [1, 2, 3, 23])
def test_the_shares_of_all_processes_are_all_digits_once_and_differ_by_one_at_most(world):
    found = [streaming.share(Path("a/digits.safetensors"), COUNT, rank, world) for rank in range(world)]
    assert [i for _, indices in found for i in indices] == list(range(COUNT))
    sizes = [len(indices) for _, indices in found]
    assert max(sizes) - min(sizes) <= 1 and len({path for path, _ in found}) == world
    assert sorted(path for path, _ in found) == [path for path, _ in found]
    with pytest.raises(ValueError, match="^count must be at least one for each of 24 processes, got 23$"):
        streaming.share(Path("digits.safetensors"), COUNT, 0, 24)


def sample(difflesson, *arguments, out="digits.safetensors"):
    options = ("--network", "mine.safetensors", "--steps", 3, "--device", "cpu", "--out", out)
    return difflesson("sample", *options, *arguments)


def test_the_shares_of_two_processes_are_the_digits_of_one_whatever_the_batch(difflesson, tmp_path, monkeypatch):
    """But for rounding: a grey level at most, of 256."""
    save_small(tmp_path / "mine.safetensors")
    for number, batch in enumerate((64, 7)):
        assert sample(difflesson, "--count", 45, "--batch", batch, out=f"{number}.safetensors").code == 0
    parts = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sample(difflesson, out="sheet.png").err.startswith("error: out must end in .safetensors, which 2 processes")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        done = sample(difflesson, "--count", 45, "--batch", 4)
        assert done.code == 0 and done.out.startswith(f"digits-{rank + 1}-of-2.safetensors: {22 + rank} digits, ")
        parts.append(checkpoints.load_tensors(tmp_path / f"digits-{rank + 1}-of-2.safetensors")[0])
    one, other = (checkpoints.load_tensors(tmp_path / f"{number}.safetensors")[0] for number in range(2))
    alone = data.to_pixels(sampling.generate(small_saved(tmp_path), torch.arange(45) % 10, 2.0, steps=3,
                                             index=torch.arange(45)))  # fmt: skip
    for images in (torch.cat([part["images"] for part in parts]), other["images"], alone):
        assert int((images.int() - one["images"].int()).abs().max()) <= 1
    assert torch.equal(torch.cat([part["labels"] for part in parts]), torch.arange(45) % 10)
    assert len(one["images"].unique()) > 100


def small_saved(folder: Path) -> torch.nn.Module:
    """The network as the command line loads it: its weights went through half precision."""
    return checkpoints.load(folder / "mine.safetensors").network


def test_the_command_line_says_what_it_did_and_refuses_what_differs(difflesson, tmp_path):
    save_small(tmp_path / "mine.safetensors")
    for digits in (6, 0):
        done = sample(difflesson, "--count", 6, "--label", 7)
        assert re.match(rf"digits.safetensors: 6 digits, {digits} of them drawn now, [\d.]+ s\n", done.out)
    tensors, about = checkpoints.load_tensors(tmp_path / "digits.safetensors")
    assert tensors["labels"].tolist() == [7] * 6 and tensors["images"].shape == (6, 8, 8)
    assert about | {"gamma": 2.0, "label": 7, "seed": 0, "steps": 3, "sampler": "ddpm", "precision": "no"} == about
    assert about["network"] == checkpoints.checksum(*checkpoints.load_tensors(tmp_path / "mine.safetensors"))
    done = sample(difflesson, "--count", 6, "--label", 7, "--seed", 1)
    assert done.code == 2 and done.err.startswith("error: out must be a new file, ") and done.err.count("\n") == 1
    assert "seed 0, not 1" in done.err
    done = sample(difflesson, "--count", 6, "--label", 7, "--unlabelled", tmp_path / "mine.safetensors")
    assert done.code == 2 and f"unlabelled None, not {about['network']}" in done.err
    before = sorted(tmp_path.iterdir())
    for wrong in (("--label", 11), ("--gamma", "nan"), ("--sampler", "magic")):
        done = sample(difflesson, *wrong, out="other.safetensors")
        assert done.code == 2 and done.err.startswith(f"error: {wrong[0][2:]} must ")
    assert sorted(tmp_path.iterdir()) == before


# ---- for `make soak`: real processes


def command(folder: Path, count: int, *more, batch: int = 50) -> list:
    options = {"network": folder / "mine.safetensors", "count": count, "steps": 2, "batch": batch, "device": "cpu"}
    return ["-m", "difflesson", "sample", *(x for k, v in options.items() for x in (f"--{k}", str(v))), *more]


def variables() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.nightly
def test_two_processes_of_torchrun_draw_the_digits_of_one(tmp_path):
    save_small(tmp_path / "mine.safetensors")
    for launch, out in (([], "one"), (["-m", "torch.distributed.run", "--nproc_per_node", "2"], "two")):
        line = [sys.executable, *launch, *command(tmp_path, 1500, "--out", f"{out}.safetensors")]
        subprocess.run(line, cwd=tmp_path, env=variables(), check=True, capture_output=True)
    parts = [checkpoints.load_tensors(tmp_path / f"two-{n}-of-2.safetensors")[0]["images"].int() for n in (1, 2)]
    one = checkpoints.load_tensors(tmp_path / "one.safetensors")[0]["images"].int()
    assert int((torch.cat(parts) - one).abs().max()) <= 1


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_six_kills_at_random_moments_change_no_byte(tmp_path):
    save_small(tmp_path / "mine.safetensors")
    draw, part, seen = random.Random(0), tmp_path / "killed.safetensors.part", []
    line = [sys.executable, *command(tmp_path, 12_000, "--out")]
    while len(seen) < 6:
        child = subprocess.Popen([*line, "killed.safetensors"], cwd=tmp_path, env=variables())
        before = part.stat().st_mtime_ns if part.exists() else None
        while child.poll() is None and (not part.exists() or part.stat().st_mtime_ns == before):
            time.sleep(0.002)  # until it has written something of its own
        try:
            child.wait(draw.uniform(0.0, 0.2))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it should have been killed before its end"
        seen.append(part.stat().st_size)
    assert seen == sorted(seen) and len(set(seen)) > 3
    for name in ("killed", "whole"):
        subprocess.run([*line, f"{name}.safetensors"], cwd=tmp_path, env=variables(), check=True)
    killed, whole = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == whole and not part.exists()


PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("difflesson", run_name="__main__")
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another elsewhere")
def test_twenty_thousand_digits_in_a_file_take_no_more_memory_than_a_thousand(tmp_path):
    """In 28x28, so that what was kept would be seen: 63 MB of floats, 16 MB of bytes."""
    save_small(tmp_path / "mine.safetensors", "mnist")
    peaks = []
    for count in (1_280, 20_000):
        more = ("--sampler", "ddim", "--gamma", "1", "--out", f"{count}.safetensors")
        line = [sys.executable, "-c", PEAK, *command(tmp_path, count, *more, batch=64)[1:]]
        done = subprocess.run(line, cwd=tmp_path, env=variables(), capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert (tmp_path / "20000.safetensors").stat().st_size > 20_000 * 784
    assert peaks[1] < peaks[0] + 8, peaks  # MB
