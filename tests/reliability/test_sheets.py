"""Digits and their pictures: the noise of each digit is its own, pages are bounded, places are tried first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from difflesson import cli, plotting
from difflesson.digits import checkpoints, metrics, sampling, sheets
from difflesson.digits.blueprint import Blueprint
from difflesson.digits.networks import DigitClassifier, DigitUNet
from tests.oracles.small_digits import SMALL, save_small, small

LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


def draw(labels: torch.Tensor = LABELS, **options) -> torch.Tensor:
    return sampling.generate(small(), labels, 2.0, **{"seed": 4, "steps": 4} | options)


def worst(a, b) -> float:
    return float((a - b).abs().max())


# ---- each digit has its own noise


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_with_an_index_neither_batch_nor_order_nor_division_of_the_work_changes_a_digit(sampler):
    index = torch.arange(10)
    whole = draw(index=index, sampler=sampler)
    for batch in (1, 3, 256):
        assert worst(draw(index=index, sampler=sampler, batch=batch), whole) < 1e-4
    order = torch.tensor([7, 0, 9, 3])
    assert worst(draw(LABELS[order], index=order, sampler=sampler), whole[order]) < 1e-4
    halves = [draw(LABELS[part], index=part, sampler=sampler) for part in index.split(6)]
    assert worst(torch.cat(halves), whole) < 1e-4


def test_with_an_index_seed_and_index_decide_and_digits_of_one_label_differ():
    sevens, index = torch.full((6,), 7), torch.arange(6)
    images = draw(sevens, index=index).flatten(1)
    assert float((torch.cdist(images, images) + 1e3 * torch.eye(6)).min()) > 0.5
    assert worst(draw(sevens, index=index, seed=5).flatten(1), images) > 0.1
    assert worst(draw(sevens, index=index + 1).flatten(1)[:-1], images[1:]) < 1e-4


def test_the_noises_of_neighbouring_digits_and_seeds_are_standard_normal_and_independent():
    """10 seeds of 40 digits, 784 numbers each: correlations have standard deviation 1/28; 79,800 pairs, 6 sigma."""
    seen = []

    class Recorder(DigitUNet):
        size, schedule = 28, small().schedule

        def forward(self, x, log_snr, label):
            seen.append(x.flatten(1))
            return torch.zeros_like(x)

    for seed in range(10):
        index = torch.arange(40)
        sampling.generate(Recorder(**SMALL), index % 10, 1.0, seed=seed, steps=2, index=index)
    first = torch.cat(seen[::2]).double()  # (400, 784), at the first time of each run
    assert first.shape == (400, 784) and abs(float(first.mean())) < 4 / 560 and abs(float(first.std()) - 1) < 0.01
    assert float((first.corrcoef() - torch.eye(400)).abs().max()) < 6 / 28


def test_without_an_index_digits_are_those_of_one_stream_as_in_the_chapters():
    """One generator: first noise and step noises of the first batch, then of the second. Under DDPM batches matter."""
    network, generator, found = small(), torch.Generator().manual_seed(4), []
    for labels in LABELS.split(4):
        kernel = sampling.SAMPLERS["ddpm"](sampling.guided_denoiser(network, labels, 2.0), network.schedule)
        noise = torch.randn(len(labels), 1, 8, 8, generator=generator)
        found.append(sampling.draw(kernel, noise, sampling.digit_times(4, network.schedule), generator))
    assert torch.equal(draw(batch=4), torch.cat(found)) and worst(draw(batch=5), torch.cat(found)) > 0.1


@pytest.mark.parametrize(
    "index",
    [torch.arange(9), torch.arange(10.0), torch.arange(10) - 1, torch.arange(10)[None], torch.tensor(3)],
    ids=["too few", "not whole", "negative", "two dimensions", "none"],
)
def test_an_index_that_does_not_fit_is_refused(index):
    with pytest.raises(ValueError, match="^index must be integers from 0, one for each of 10 labels, got"):
        draw(index=index)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(batch):
    with pytest.raises(ValueError, match=f"^batch must be at least 1, got {batch}$"):
        draw(batch=batch)


# ---- pages


@pytest.fixture
def asked(monkeypatch) -> list[list[int]]:
    """The index of each call of `sampling.generate`, which answers with blank digits at once."""
    calls = []

    def generate(network, labels, gamma, *, index, **options):
        calls.append(index.tolist())
        return -torch.ones(len(labels), 1, 28, 28)

    monkeypatch.setattr(sampling, "generate", generate)
    return calls


@pytest.mark.parametrize("label, width", [((), 10), (("--label", 7), 8)])
def test_more_digits_than_a_page_holds_become_several_pictures(difflesson, asked, monkeypatch, tmp_path, label, width):
    monkeypatch.setattr(sheets, "PAGE", 40)
    monkeypatch.setitem(plotting.STYLE, "savefig.dpi", 40)
    done = difflesson("sample", "--count", 90, *label, "--device", "cpu", "--out", "sheet.png")
    assert done.code == 0 and re.match(r"sheet-1-of-3\.png to sheet-3-of-3\.png: 90 digits, ", done.out)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"sheet-{page}-of-3.png" for page in (1, 2, 3)]
    assert asked == [list(range(40)), list(range(40, 80)), list(range(80, 90))]
    first, last = (matplotlib.image.imread(tmp_path / f"sheet-{page}-of-3.png").shape for page in (1, 3))
    assert first[0] / last[0] > 1.5 and abs(first[1] / first[0] - width / (40 / width)) < 0.4


def test_a_page_holds_whole_rows_and_is_smaller_than_5000_pixels():
    assert sheets.PAGE % 8 == sheets.PAGE % 10 == 0 and sheets.PAGE / 8 * 0.55 * 120 < 5500


def test_few_digits_are_the_first_of_many(difflesson, monkeypatch, tmp_path):
    drawn = []

    def generate(*arguments, original=sampling.generate, **options):
        drawn.append(original(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(sampling, "generate", generate)
    for count in (5, 12):
        assert difflesson("sample", "--count", count, "--steps", 2, "--device", "cpu").code == 0
    network = checkpoints.load("denoiser").network
    index = torch.arange(12)
    alone = sampling.generate(network, index % 10, 2.0, steps=2, index=index, batch=7)
    assert worst(drawn[0], drawn[1][:5]) < 1e-4 and worst(alone, drawn[1]) < 1e-4


# ---- places


@pytest.fixture
def places(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.json").mkdir()


FILE = "file is not a folder"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("sample", "--out", "file/x.png"), f"file/x.png cannot be written: {FILE}"),
        (("sample", "--out", "file/new/x.png"), f"file/new/x.png cannot be written: {FILE}"),
        (("sample", "--out", "folder.png"), "folder.png cannot be written: it is a folder"),
        (("train", "judge", "--data", "embedded", "--folder", "file"), f"file/judge-state.* be written: {FILE}"),
        (("train", "judge", "--data", "embedded", "--folder", "file/new"), f"file/new/judge-.* be written: {FILE}"),
        (("reference", "--judge", "judge", "--out", "file/x.safetensors"), f"file/x.* cannot be written: {FILE}"),
        (("reference", "--judge", "judge", "--out", "folder.safetensors"), "folder.* be written: it is a folder"),
        (("reference", "--judge", "judge", "--out", "x.json"), "out must end in .safetensors, got x.json"),
        (("reference", "--judge", "denoiser"), "judge must be a classifier of 28x28 .*, denoiser holds a DigitUNet .*"),
        (("reference", "--judge", "small.safetensors"), "judge must be .*28x28 .*small.* a DigitClassifier of 8x8"),
        (("sample", "--device", "meta"), "device 'meta' cannot be used here: .*"),
        (("sample", "--device", ""), "device '' cannot be used here: .*"),
        (("evaluate", "--device", "meta"), "device 'meta' cannot be used here: .*"),
        (("evaluate", "--network", "own.safetensors", "--card"), "own.json cannot be written: it is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_place_that_cannot_be_written_ends_in_one_line_before_the_work(
    difflesson, monkeypatch, tmp_path, places, arguments, says
):
    def work(*arguments, **options):
        raise AssertionError("work was done")

    for module, name in ((sampling, "generate"), (metrics, "judged"), (cli.training, "_take_step")):
        monkeypatch.setattr(module, name, work)
    about = {"log_snr_max": 20.0, "log_snr_min": -20.0}
    kinds = {"small": (DigitClassifier, "logits", "embedded", 8), "own": (DigitUNet, "v", "mnist", 28)}
    for name, (kind, prediction, trained_on, size) in kinds.items():
        blueprint = Blueprint(kind.__name__, SMALL, prediction, "cosine", about, trained_on, size)
        checkpoints.save(tmp_path / f"{name}.safetensors", blueprint, kind(**SMALL).state_dict(), {})
    if "own.safetensors" in arguments:

        def refuse(path, size=1, original=checkpoints.try_place):
            original(path.with_name("folder.json") if path.name == "own.json" else path, size)

        monkeypatch.setattr(checkpoints, "try_place", refuse)
        says = says.replace("own", "folder")
    before = sorted(tmp_path.rglob("*"))
    done = difflesson(*arguments, *(() if "--device" in arguments or "reference" in arguments else ("--device", "cpu")))
    assert (done.code, done.out) == (2, "") and re.fullmatch(f"error: {says}\n", done.err.replace("\\", "/"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_when_the_picture_is_written_ends_in_one_line(difflesson, asked, tmp_path, full_disk):
    with full_disk(1000):
        done = difflesson("sample", "--count", 4, "--device", "cpu", "--out", "sheet.png")
    assert done.code == 2 and done.err == "error: sheet.png cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


# ---- memory

MEMORY = """
import resource, sys
from difflesson import cli
arguments = "difflesson sample --steps 2 --sampler ddim --gamma 1 --device cpu".split()
sys.argv = [*arguments, *sys.argv[1:]]
try:
    cli.main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another elsewhere")
def test_twenty_thousand_digits_take_no_more_memory_than_one_page(tmp_path):
    """It was 8.2 GB. Two minutes; the network is a small one, since what grew was the picture."""
    path = save_small(tmp_path / "mine.safetensors", "mnist")
    peaks = []
    for count in ("640", "20000"):
        command = [sys.executable, "-c", MEMORY, "--count", count, "--network", path]
        variables = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert len(list(tmp_path.glob("figures/sample-??-of-32.png"))) == 32
    assert peaks[1] < 1.1 * peaks[0] < 0.8, peaks  # GB
