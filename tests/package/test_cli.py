"""The command line: pictures, training and evaluation end to end, and one clear line for a wrong argument."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
import typer

from difflesson import __version__, cli
from difflesson.digits import checkpoints, data, diversity, metrics, networks, recipes, sampling
from difflesson.digits.blueprint import Blueprint

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
SMALL = {"widths": (8, 16), "embedding": 16}


@pytest.fixture
def offline(monkeypatch):
    """No connection leaves this process."""

    def refuse(*arguments):
        raise AssertionError("somebody went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("DIFFLESSON_DATA", raising=False)


def save_small(path: Path, kind=networks.DigitUNet, trained_on: str = "mnist") -> Path:
    """A small network with random weights, and a card."""
    network, generator = kind(**SMALL), torch.Generator().manual_seed(0)
    state = {name: torch.randn(w.shape, generator=generator) / 8 for name, w in network.state_dict().items()}
    blueprint = Blueprint(
        network=kind.__name__,
        arguments=SMALL,
        prediction="v" if kind is networks.DigitUNet else "logits",
        schedule="cosine",
        schedule_arguments={"log_snr_max": 20.0, "log_snr_min": -20.0},
        data=trained_on,
        size=data.DATASETS[trained_on].size,
    )
    checkpoints.save(path, blueprint, state, {"recipe": {"data": trained_on}})
    return path


# ---- sample


def test_one_command_draws_guided_sevens(tmp_path):
    """As a reader types it, with fewer digits and steps: a picture where asked for, one line that says so."""
    command = [sys.executable, "-m", "difflesson", "sample", "--label", "7", "--gamma", "3", "--count", "4"]
    command += ["--steps", "3", "--device", "cpu", "--out", "new/sevens.png"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    picture = Path("new") / "sevens.png"
    assert re.fullmatch(rf"{re.escape(str(picture))}: 4 digits, \d+\.\d s\n", done.stdout)
    assert (tmp_path / picture).read_bytes().startswith(PNG)


def test_sample_draws_what_was_asked_for(difflesson, monkeypatch, tmp_path):
    asked = []

    def generate(network, labels, gamma, **options):
        asked.append((labels.tolist(), gamma, options | {"network": network}))
        return torch.zeros(len(labels), 1, 8, 8)

    monkeypatch.setattr(sampling, "generate", generate)
    done = difflesson("sample", "--label", 7, "--gamma", 3, "--seed", 5, "--device", "cpu")
    assert done.code == 0 and (tmp_path / "figures" / "sample.png").read_bytes().startswith(PNG)
    labels, gamma, options = asked[0]
    assert labels == 64 * [7] and gamma == 3.0
    assert (options["seed"], options["steps"], options["sampler"]) == (5, 16, "ddpm")
    assert options["guide"] is None and options["dtype"] is None

    arguments = ("--count", 13, "--steps", 7, "--sampler", "ddim", "--guidance", "classifier")
    assert difflesson("sample", *arguments, "--device", "cpu").code == 0
    labels, gamma, options = asked[1]
    assert labels == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2] and gamma == 2.0
    assert (options["seed"], options["steps"], options["sampler"]) == (0, 7, "ddim")
    assert isinstance(options["guide"], networks.DigitClassifier) and options["unlabelled"] is None

    assert difflesson("sample", "--unlabelled", "pocket", "--device", "cpu").code == 0
    network, other = asked[2][2]["network"], asked[2][2]["unlabelled"]
    sizes = [sum(w.numel() for w in one.parameters()) for one in (network, other)]
    assert sizes == [checkpoints.load(name).card["parameters"] for name in ("denoiser", "pocket")]


def test_the_same_command_draws_the_same_picture(difflesson, tmp_path):
    network = save_small(tmp_path / "mine.safetensors")
    pictures = []
    for seed in (1, 1, 2):
        arguments = ("--network", network, "--seed", seed, "--count", 3, "--steps", 2, "--device", "cpu")
        assert difflesson("sample", *arguments).code == 0
        pictures.append((tmp_path / "figures" / "sample.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    assert not matplotlib.pyplot.get_fignums()  # nothing is left open


@pytest.mark.parametrize("command", ["sample", "train"])
def test_every_option_reaches_the_command_through_torchrun(command):
    """torchrun looks for its own options among all words, also by their beginnings: `--start` was `--start-method`."""
    from torch.distributed.run import parse_args

    options = [name for p in typer.main.get_command(cli.app).commands[command].params for name in p.opts]
    words = ["train", *(word for name in options if name.startswith("--") for word in (name, "x"))]
    with pytest.raises(SystemExit):
        parse_args(["-m", "difflesson", "train", "--start", "x"])
    assert len(words) > 12 and parse_args(["-m", "difflesson", *words]).training_script_args == words


# ---- train


def test_training_runs_end_to_end_without_a_network_and_its_result_draws(difflesson, offline, tmp_path):
    """The embedded digits: train, a card beside, and an 8x8 picture of the result."""
    arguments = ("--data", "embedded", "--steps", 6, "--batch", 8, "--seed", 3, "--learning-rate", 0.001)
    done = difflesson("train", "denoiser", *arguments, "--device", "cpu", "--folder", "mine")
    path = tmp_path / "mine" / "denoiser.safetensors"
    assert done.code == 0
    assert done.out.startswith(f"{Path('mine') / 'denoiser.safetensors'}: trained for 6 steps")
    assert sorted(p.name for p in path.parent.iterdir()) == ["denoiser.json", "denoiser.safetensors"]
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    asked = {"task": "denoiser", "data": "embedded", "steps": 6, "batch": 8, "seed": 3, "learning_rate": 1e-3}
    assert card["recipe"] | asked | {"name": "denoiser"} == card["recipe"]
    assert card["command"].startswith("difflesson train denoiser --device cpu --precision no --data embedded --steps 6")

    arguments = ("--network", path, "--label", 3, "--count", 4, "--steps", 3, "--device", "cpu")
    assert difflesson("sample", *arguments, "--out", "three.png").code == 0
    assert (tmp_path / "three.png").read_bytes().startswith(PNG)
    images = sampling.generate(checkpoints.load(path).network, torch.full((4,), 3), 2.0, steps=3)
    assert images.shape == (4, 1, 8, 8) and bool(images.isfinite().all())


def test_every_option_of_training_reaches_the_recipe_and_its_command_says_it(difflesson, monkeypatch):
    """The command of the card, given back to the command line, makes the same recipe."""
    made = []

    def keep(recipe, folder, **options):
        made.append(recipe)
        return folder / "x.safetensors"

    monkeypatch.setattr(cli.training, "train", keep)
    options = {
        "--data": "embedded", "--steps": 7, "--batch": 5, "--learning-rate": 0.5, "--seed": 4, "--label-dropout": 0.25,
        "--ema-decay": 0.75, "--schedule": "vp_linear", "--objective": "eps", "--weighting": "min_snr",
        "--start-from": "denoiser", "--teacher": "itself",
    }  # fmt: skip
    assert difflesson("train", "denoiser", *(word for option in options.items() for word in option)).code == 0
    called = {"objective": "prediction", "start_from": "start"}
    fields = [called.get(name, name) for name in (o[2:].replace("-", "_") for o in options)]
    assert [getattr(made[0], field) for field in fields] == list(options.values())
    words = shlex.split(cli.training.command(made[0], "cpu", "no"))
    assert words[:2] == ["difflesson", "train"] and difflesson(*words[1:]).code == 0
    assert made[1] == made[0] and made[0] != recipes.recipe("denoiser")
    assert difflesson("train", "pocket").code == 0 and made[2] == recipes.recipe("pocket")


@pytest.mark.parametrize("card", ["a card", "no card"])
def test_a_network_is_sampled_in_the_size_it_was_trained_on(difflesson, monkeypatch, tmp_path, card):
    shapes = []

    def generate(*arguments, original=sampling.generate, **options):
        images = original(*arguments, **options)
        shapes.append(tuple(images.shape))
        return images

    monkeypatch.setattr(sampling, "generate", generate)
    for trained_on in ("mnist", "embedded"):
        network = save_small(tmp_path / f"{trained_on}.safetensors", trained_on=trained_on)
        if card == "no card":
            network.with_suffix(".json").unlink()
        done = difflesson("sample", "--network", network, "--count", 2, "--steps", 2, "--device", "cpu")
        assert done.code == 0, done.err
    assert shapes == [(2, 1, 28, 28), (2, 1, 8, 8)]


# ---- evaluate and reference


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """With what `sampling.generate` is called; it answers with blank digits at once."""
    calls = []

    def generate(network, labels, gamma, **options):
        calls.append(options)
        return -torch.ones(len(labels), 1, 28, 28)

    monkeypatch.setattr(sampling, "generate", generate)
    return calls


@pytest.fixture
def own(difflesson, tmp_path) -> Path:
    """The shipped denoiser, copied: a card of one's own to write into."""
    path = tmp_path / "own.safetensors"
    for ending in (".safetensors", ".json"):
        shutil.copy(checkpoints.shipped("denoiser").with_suffix(ending), path.with_suffix(ending))
    return path


@pytest.mark.parametrize("guidance", ["classifier-free", "classifier"])
def test_evaluate_guides_as_asked_and_files_the_numbers_under_that_guidance(difflesson, asked, own, guidance):
    card = own.with_suffix(".json")
    before = json.loads(card.read_text(encoding="utf-8"))["metrics"]
    arguments = ("--network", own, "--count", 100, "--guidance", guidance, "--precision", "bf16", "--device", "cpu")
    difflesson("evaluate", *arguments)
    assert json.loads(card.read_text(encoding="utf-8"))["metrics"] == before, "without --card nothing is written"
    difflesson("evaluate", *arguments, "--card")
    after = json.loads(card.read_text(encoding="utf-8"))["metrics"]
    assert after.keys() - before.keys() == {f"{guidance}, ddpm, 16 steps, 100 digits, seed 0, cpu, precision bf16"}
    for options in asked:
        assert options["dtype"] == torch.bfloat16
        assert isinstance(options["guide"], networks.DigitClassifier) == (guidance == "classifier")
        assert guidance == "classifier" or options["guide"] is None
    difflesson("evaluate", *arguments[:-4], "--precision", "no", "--device", "cpu")
    assert asked[-1]["dtype"] is None


def test_evaluate_files_the_numbers_under_the_network_that_answered_without_a_label(difflesson, asked, own):
    arguments = ("--network", own, "--count", 100, "--unlabelled", "pocket", "--card", "--device", "cpu")
    assert difflesson("evaluate", *arguments).code == 0
    assert isinstance(asked[0]["unlabelled"], networks.DigitUNet)
    written = json.loads(own.with_suffix(".json").read_text(encoding="utf-8"))["metrics"]
    setting = "classifier-free, unlabelled by pocket, ddpm, 16 steps, 100 digits, seed 0, cpu, precision no"
    assert "--unlabelled pocket" in written[setting]["1"]["command"]


def test_sample_draws_in_the_arithmetic_of_the_device(difflesson, asked, monkeypatch):
    monkeypatch.setattr(cli, "arithmetic", lambda place, precision: {"cpu": torch.bfloat16}[place.type])
    difflesson("sample", "--device", "cpu", "--count", 10)
    assert [options["dtype"] for options in asked] == [torch.bfloat16]


def test_sample_draws_in_the_precision_asked_for(difflesson, asked):
    for precision, dtype in (("bf16", torch.bfloat16), ("no", None)):
        assert difflesson("sample", "--device", "cpu", "--count", 10, "--precision", precision).code == 0
        assert asked[-1]["dtype"] == dtype
    assert difflesson("sample", "--precision", "fp8", "--device", "cpu").err.startswith("error: precision must be")


def test_evaluate_reports_the_metrics_of_the_digits_it_draws(difflesson, tmp_path):
    path = save_small(tmp_path / "mine.safetensors")
    arguments = ("--network", path, "--count", 100, "--steps", 2, "--sampler", "ddim", "--seed", 4)
    done = difflesson("evaluate", *arguments, "--gamma", 1, "--gamma", 2.5, "--card", "--device", "cpu")
    assert done.code == 0
    written = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert written["recipe"] == {"data": "mnist"}  # what was there stays
    ((setting, rows),) = written["metrics"].items()
    assert setting == "classifier-free, ddim, 2 steps, 100 digits, seed 4, cpu, precision no"
    assert list(rows) == ["1", "2.5"]

    reference, about = metrics.load_reference()
    assert f"floor of digit-FID: {about['digit_fid_floor']:.4f}" in done.out
    judge, mine = checkpoints.load("judge").network, checkpoints.load(path).network
    labels = torch.arange(100) % 10
    for gamma, line in zip((1.0, 2.5), done.out.splitlines()[-2:], strict=True):
        images = sampling.generate(mine, labels, gamma, seed=4, steps=2, sampler="ddim")
        report = metrics.digit_report(judge, images, labels, reference)
        command = rows[f"{gamma:g}"].pop("command")
        assert rows[f"{gamma:g}"] == report
        assert command == (
            f"difflesson evaluate --network mine.safetensors --gamma {gamma:g} --count 100 --steps 2 --sampler ddim "
            "--seed 4 --device cpu --precision no"
        )
        numbers = [float(word) for word in line.split()][:4]
        expected = [gamma, report["accuracy"], report["entropy"], report["digit_fid"]]
        assert max(abs(a - b) for a, b in zip(numbers, expected, strict=True)) < 6e-5


def test_reference_writes_the_statistics_and_the_floor(difflesson, monkeypatch, tmp_path):
    """Made-up digits stand for MNIST."""

    def load(name, split):
        seed = {"train": 1, "test": 2}[split]
        generator, count = torch.Generator().manual_seed(seed), {"train": 60, "test": 40}[split]
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        return data.Digits(images, torch.arange(count) % 10)

    monkeypatch.setattr(data, "load", load)
    path = save_small(tmp_path / "judge.safetensors", networks.DigitClassifier)
    done = difflesson("reference", "--judge", path, "--out", "new/reference.safetensors")
    assert done.code == 0
    (mean, cov, count), card = metrics.load_reference(tmp_path / "new" / "reference.safetensors")
    assert json.loads(done.out) == card and count == card["images"] == 40
    judge, images = checkpoints.load(path).network, data.to_unit(load("mnist", "test").images)
    with torch.no_grad():
        features = judge.features(images).double()
        accuracy = float((judge(images).argmax(1) == torch.arange(40) % 10).double().mean())
    assert float((mean - features.mean(0)).abs().max()) < 1e-6
    assert float((cov - features.T.cov()).abs().max()) < 1e-6
    assert abs(card["judge_accuracy_on_test"] - accuracy) < 1e-5 and card["digit_fid_floor"] > 0
    assert card["data_sha256"] == data.data_hash("mnist") and "reference --judge" in card["command"]
    real, about = diversity.load_features(tmp_path / "new" / "features.safetensors")
    assert len(real.labels) == 20 and about["command"] == card["command"] and 0 <= about["others"]["recall"] <= 1


# ---- what diverges


def test_a_training_that_diverges_ends_in_one_clear_line_and_no_checkpoint(difflesson, offline, tmp_path):
    arguments = ("--data", "embedded", "--steps", 8, "--batch", 8, "--learning-rate", 1e30)
    done = difflesson("train", "denoiser", *arguments, "--device", "cpu", "--folder", "mine")
    assert done.code == 2 and done.out == ""
    assert re.fullmatch("error: training diverged: .* learning rate below 1e.30 .*", done.err.splitlines()[-1])
    assert not list(tmp_path.rglob("*.*"))


def test_a_sheet_of_nan_is_not_drawn(difflesson, tmp_path):
    network = save_small(tmp_path / "mine.safetensors")
    made = sorted(tmp_path.iterdir())
    done = difflesson("sample", "--network", network, "--count", 2, "--steps", 2, "--gamma", 1e38, "--device", "cpu")
    assert done.code == 2 and done.out == ""
    assert re.fullmatch("error: ddpm at gamma = 1e.38 drew NaN or infinity in 2 of 2 digits: .*", done.err.strip())
    assert sorted(tmp_path.iterdir()) == made


# ---- a wrong argument


def wrong(*arguments, says: str):
    return pytest.param(arguments, says, id=" ".join(map(str, arguments)))


@pytest.mark.parametrize(
    "arguments, says",
    [
        wrong("sample", "--label", 11, says=r"label must lie in 0\.\.9, got \[11\]"),
        wrong("sample", "--label", -1, says=r"label must lie in 0\.\.9, got \[-1\]"),
        wrong("sample", "--gamma", "nan", says="gamma must be one finite number .*, got nan"),
        wrong("sample", "--gamma", "inf", says="gamma must be one finite number .*, got inf"),
        wrong("sample", "--sampler", "magic", says=r"sampler must be one of \[.*'ddim'.*\], got 'magic'"),
        wrong("sample", "--guidance", "faith", says="guidance must be .*, got 'faith'"),
        wrong("sample", "--device", "abacus", says="device 'abacus' cannot be used here: .*"),
        wrong("sample", "--network", "no.safetensors", says="path no.safetensors does not exist; .*"),
        wrong("sample", "--network", "nobody", says=r"name must be one of \[.*'denoiser'.*\], got 'nobody'"),
        wrong("sample", "--network", "mine/denoiser", says="name must be one of .*, got '.*denoiser'"),
        wrong("sample", "--network", "torn.safetensors", says="path torn.safetensors is not a readable .*"),
        wrong("sample", "--network", "words", says="network must be a denoiser of .*, words holds a Words.*"),
        wrong("sample", "--network", "nothing", says="name must be one of (?!.*'features').*"),
        wrong("sample", "--network", "judge", says="network must be a denoiser of .*, judge holds a Digit.*"),
        wrong("sample", "--unlabelled", "guide", says="unlabelled must be a denoiser of .*, guide holds a Digit.*"),
        wrong("sample", "--unlabelled", "small.safetensors", says="unlabelled must have the size of network, 28, .* 8"),
        wrong("sample", "--out", "sheet.jpg", says="out must end in .png or .safetensors, got sheet.jpg"),
        wrong(
            *("sample", "--network", "small.safetensors", "--guidance", "classifier"),
            says="network must draw 28x28 digits, .*; small.safetensors draws 8x8",
        ),
        wrong(
            *("evaluate", "--network", "small.safetensors", "--count", 100),
            says="network must draw 28x28 digits, .*; small.safetensors draws 8x8",
        ),
        wrong(
            *("evaluate", "--network", "small-without-card.safetensors", "--count", 100),
            says="network must draw 28x28 digits, .*; small-without-card.safetensors draws 8x8",
        ),
        wrong("evaluate", "--network", "no.safetensors", says="path no.safetensors does not exist; .*"),
        wrong("evaluate", "--network", "judge", says="network must be a denoiser of .*, judge holds a Digit.*"),
        wrong("evaluate", "--guidance", "faith", says="guidance must be .*, got 'faith'"),
        wrong("evaluate", "--network", "words", says="network must be a denoiser of .*, words holds a Words.*"),
        wrong("evaluate", "--sampler", "magic", says=r"sampler must be one of \[.*'ddim'.*\], got 'magic'"),
        wrong("evaluate", "--gamma", 1, "--gamma", "nan", says="gamma must be one finite number .*, got nan"),
        wrong("evaluate", "--precision", "fp8", says="precision must be .*, got 'fp8'"),
        wrong("train", "artist", says=r"name must be one of \[.*'denoiser'.*'pocket'.*\], got 'artist'"),
        wrong("train", "denoiser", "--objective", "u", says=r"prediction of a DigitUNet must be one of .*, got 'u'"),
        wrong("train", "denoiser", "--teacher", "nobody", says=r"teacher must be a .* got 'nobody': .*"),
        wrong("train", "judge", "--data", "imagenet", says="data must be .*embedded.*mnist.*, got 'imagenet'"),
        wrong("train", "judge", "--learning-rate", 0, says="learning_rate must be positive .*, got 0.0"),
        wrong("train", "judge", "--objective", "eps", says="prediction must be 'v' for judge, .*, got 'eps'"),
        wrong("train", "judge", "--precision", "fp16", says="precision must be .*, got 'fp16'"),
        wrong(
            *("train", "judge", "--device", "abacus", "--precision", "no"),
            says="device must be .*, got 'abacus'",
        ),
    ],
)
def test_a_wrong_argument_ends_in_one_clear_line(difflesson, tmp_path, arguments, says):
    (tmp_path / "torn.safetensors").write_bytes(b"12345678901234567890")
    save_small(tmp_path / "small.safetensors", trained_on="embedded")
    save_small(tmp_path / "small-without-card.safetensors", trained_on="embedded").with_suffix(".json").unlink()
    made = sorted(tmp_path.iterdir())
    device = () if "--device" in arguments else ("--device", "cpu")
    done = difflesson(*arguments, *device)
    assert done.code == 2 and done.out == ""
    assert re.fullmatch(f"error: {says}", done.err.removesuffix("\n"))
    assert sorted(tmp_path.iterdir()) == made  # and nothing was written


@pytest.mark.parametrize("rank, world", [("0", "0"), ("3", "2"), ("abc", "2"), ("-1", "2"), ("0", "two")])
def test_a_place_that_no_process_can_have_ends_in_one_clear_line(difflesson, monkeypatch, tmp_path, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    done = difflesson("sample", "--out", "z.safetensors", "--device", "cpu")
    assert done.code == 2 and list(tmp_path.iterdir()) == []
    assert done.err == f"error: RANK must be an integer in 0..WORLD_SIZE - 1, got RANK={rank} WORLD_SIZE={world}\n"


def test_a_gpu_that_is_too_small_ends_in_one_clear_line(difflesson, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(sampling, "generate", full)
    done = difflesson("sample", "--network", "pocket", "--device", "cpu")
    assert done.code == 2 and done.err.startswith("error: CUDA out of memory.") and "Traceback" not in done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", [("sample",), ("evaluate",), ("train", "judge")], ids=" ".join)
def test_a_device_that_is_missing_here_is_not_replaced_by_another(difflesson, command):
    done = difflesson(*command, "--device", "cuda")
    assert done.code == 2 and re.fullmatch("error: device .*cuda.*", done.err.removesuffix("\n"))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("sample", "--label", "seven"), "--label"),
        (("sample", "--count", 0), "--count"),
        (("sample", "--steps", 1), "--steps"),
        (("sample", "--seed", -1), "--seed"),
        (("sample", "--seed", 2**63), "--seed"),
        (("evaluate", "--count", 99), "--count"),
        (("train",), "name"),
        (("train", "judge", "--save-every", 0), "--save-every"),
        (("paint",), "paint"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_parsed_is_named_too(difflesson, tmp_path, arguments, says):
    done = difflesson(*arguments)
    assert done.code == 2 and says in done.err.lower() and list(tmp_path.iterdir()) == []


def test_training_without_accelerate_says_what_to_install(difflesson, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    done = difflesson("train", "judge", "--data", "embedded", "--device", "cpu")
    assert done.code == 2
    assert done.err == "error: training needs accelerate: pip install -e '.[train]' in the course's folder\n"


def test_training_on_mnist_without_mnist_says_what_to_do(difflesson, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFLESSON_DATA", str(tmp_path / "nowhere"))
    done = difflesson("train", "judge", "--device", "cpu", "--steps", 1)
    assert done.code == 2 and done.err.startswith("error: ") and "DIFFLESSON_DATA" in done.err
    assert len(done.err.splitlines()) == 1


# ---- tour and help


def test_the_tour_draws_runs_the_first_chapter_and_says_where_to_go(difflesson, monkeypatch, tmp_path):
    def generate(network, labels, gamma, **options):
        assert labels.tolist() == [i % 10 for i in range(60)] and gamma == 2.0
        return torch.zeros(60, 1, 28, 28)

    calls, outcomes = [], [0, 1]

    def run(command, cwd):
        calls.append((command[1:], cwd))
        return SimpleNamespace(returncode=outcomes[len(calls) - 1])

    monkeypatch.setattr(sampling, "generate", generate)
    monkeypatch.setattr(cli.subprocess, "run", run)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert difflesson("tour").err.startswith(f"error: {tmp_path} is not a checkout of the course")
    assert list(tmp_path.iterdir()) == []
    tool = tmp_path / "tools" / "notebooks.py"
    tool.parent.mkdir()
    tool.touch()
    done = difflesson("tour")
    assert done.code == 0 and calls == [(["-m", "tools.notebooks", "run", "00"], tmp_path)]
    assert (tmp_path / "figures" / "tour.png").read_bytes().startswith(PNG)
    assert "notebooks/00_start_here.ipynb" in done.out
    assert (ROOT / "notebooks" / "00_start_here.ipynb").exists()
    assert difflesson("tour").code == 1  # the chapter failed


def test_the_version_is_that_of_the_package(difflesson):
    done = difflesson("--version")
    assert (done.code, done.out, done.err) == (0, f"difflesson {__version__}\n", "")


def test_help_lists_every_command(difflesson):
    done = difflesson("--help")
    assert done.code == 0
    assert all(command in done.out for command in ("tour", "sample", "train", "evaluate", "reference", "--version"))
