"""Checkpoints: what is saved comes back, what is damaged is refused, and what ships is what its cards say."""

import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import difflesson
from difflesson.digits import captions, checkpoints, data, metrics, recipes
from difflesson.digits.blueprint import Blueprint
from difflesson.digits.networks import DigitClassifier, DigitUNet
from difflesson.digits.words import Towers, WordsUNet
from difflesson.schedule import CosineSchedule, LinearSchedule, vp_linear

PACKAGE = Path(difflesson.__file__).parent
WEIGHTS = PACKAGE / "digits" / "weights"
OF_REAL_DIGITS = ("features", "reference")  # no networks
CLASSES = {"denoiser": DigitUNet, "judge": DigitClassifier, "guide": DigitClassifier}
OF_SENTENCES = {"words": WordsUNet, "towers": Towers, "noisy_towers": Towers}
SHIPPED = sorted(path.stem for path in (Path(checkpoints.__file__).parent / "weights").glob("*.safetensors"))
NETWORKS = {name: (CLASSES | OF_SENTENCES)[recipes.recipe(name).task] for name in SHIPPED if name not in OF_REAL_DIGITS}
every_network = pytest.mark.parametrize("name", NETWORKS)
SMALL = {"widths": (8, 16), "classes": 3, "embedding": 16}


def small(kind: type = DigitUNet, seed: int = 0) -> torch.nn.Module:
    """A small network with random weights everywhere, multiples of 1/64: exact in half precision."""
    network, generator = kind(**SMALL), torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randint(-32, 33, p.shape, generator=generator) / 64
    return network


def blueprint(**changes) -> Blueprint:
    """Of a small denoiser of 8x8 digits under a schedule that is nobody's default."""
    usual = {
        "network": "DigitUNet",
        "arguments": SMALL,
        "prediction": "v",
        "schedule": "vp_linear",
        "schedule_arguments": {"beta_min": 0.2, "beta_max": 15.0},
        "data": "embedded",
        "size": 8,
    }
    return Blueprint(**usual | changes)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small denoiser's checkpoint with a card."""
    path = tmp_path / "new" / "mine.safetensors"
    checkpoints.save(path, blueprint(), small().state_dict(), {"task": "denoiser", "loss": [[1, 0.1]]})
    return path


# ---- what is saved comes back


@pytest.mark.parametrize("kind", [DigitUNet, DigitClassifier])
def test_a_saved_network_answers_as_before(tmp_path, kind):
    path, network = tmp_path / "mine.safetensors", small(kind)
    prediction = "v" if kind is DigitUNet else "logits"
    made = blueprint(network=kind.__name__, prediction=prediction)
    checkpoints.save(path, made, network.state_dict(), {"é": 1})
    loaded, card = checkpoints.load(path)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    arguments = (x, torch.tensor([-1.0, 2.0])) + ((torch.tensor([0, 3]),) if kind is DigitUNet else ())
    assert type(loaded) is kind and card == {"é": 1}
    assert float((loaded(*arguments) - network(*arguments)).detach().abs().max()) < 1e-5


def test_a_loaded_network_is_for_use_and_differentiable_in_its_input(saved):
    network, _ = checkpoints.load(str(saved))
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert all(p.dtype == torch.float32 for p in network.parameters())
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    v = network(x, torch.zeros(1), torch.tensor([1]))
    assert float(torch.autograd.grad(v.sum(), x)[0].abs().max()) > 0


def test_weights_are_stored_in_half_precision_and_nothing_else_is_left_behind(saved):
    assert sorted(p.name for p in saved.parent.iterdir()) == ["mine.json", "mine.safetensors"]
    tensors, metadata = checkpoints.load_tensors(saved)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert metadata == {
        "network": "DigitUNet",
        "arguments": json.loads(json.dumps(SMALL)),
        "prediction": "v",
        "schedule": "vp_linear",
        "schedule_arguments": {"beta_min": 0.2, "beta_max": 15.0},
        "data": "embedded",
        "size": 8,
    }
    assert b"\r" not in saved.with_suffix(".json").read_bytes()  # the same bytes on every system


def test_tensors_and_metadata_keep_value_shape_and_type(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        "scalar": torch.tensor(7),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "empty": torch.zeros(0, 2),
        "grad": torch.ones(2, requires_grad=True),
    }
    metadata = {"number": 0.1, "nested": {"é": [1, None, True]}}
    checkpoints.save_tensors(path, tensors, metadata)
    back, about = checkpoints.load_tensors(path)
    assert about == metadata and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    """A file still mapped into memory can be neither replaced nor deleted on Windows: no resuming there."""
    path = tmp_path / "a.safetensors"
    checkpoints.save_tensors(path, {"a": torch.ones(5000)}, {})
    tensors, _ = checkpoints.load_tensors(path)
    with path.open("r+b") as file:  # in place, the file keeps its length
        file.seek(-5000, os.SEEK_END)
        file.write(bytes(5000))
    assert float(tensors["a"].min()) == 1


# ---- an interrupted save


@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_an_interrupted_save_leaves_the_previous_file_intact(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.safetensors"
    checkpoints.save_tensors(path, {"a": torch.zeros(100)}, {"version": 1})
    before = path.read_bytes()

    def half_a_file(tensors, filename, metadata):
        save_file(tensors, filename, metadata)
        Path(filename).write_bytes(Path(filename).read_bytes()[:200])
        raise OSError("disk full")

    def no_renaming(source, target):
        raise OSError("disk full")

    if moment == "while writing":
        monkeypatch.setattr(checkpoints, "save_file", half_a_file)
    else:
        monkeypatch.setattr(checkpoints.os, "replace", no_renaming)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_tensors(path, {"a": torch.ones(100)}, {"version": 2})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(path, blueprint(), small().state_dict(), {})
    monkeypatch.undo()
    assert path.read_bytes() == before and not path.with_suffix(".json").exists()
    assert checkpoints.load_tensors(path)[1] == {"version": 1}
    checkpoints.save_tensors(path, {"a": torch.ones(100)}, {"version": 3})  # and the next save works again
    assert checkpoints.load_tensors(path)[1] == {"version": 3}


def test_a_card_is_replaced_as_a_whole(saved, monkeypatch):
    before = saved.with_suffix(".json").read_bytes()

    def no_renaming(source, target):
        complete = json.loads(Path(source).read_text(encoding="utf-8"))
        assert complete == {"new": 1}
        assert Path(target) == saved.with_suffix(".json")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.os, "replace", no_renaming)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.write_card(saved, {"new": 1})
    assert saved.with_suffix(".json").read_bytes() == before


# ---- what is refused


@pytest.mark.parametrize("keep", [0, 7, 200, 0.5, -1], ids=str)
def test_a_truncated_file_is_refused_by_its_name(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=re.escape(f"path {saved} is not a readable difflesson checkpoint")):
        checkpoints.load(saved)


@pytest.mark.parametrize("content", ["text", "foreign safetensors", "zip"])
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "other.safetensors"
    if content == "text":
        path.write_text("hello, I am not a checkpoint")
    elif content == "zip":
        torch.save({"a": torch.zeros(3)}, path)
    else:
        save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=re.escape(f"path {path} is not a readable difflesson checkpoint")):
        checkpoints.load(path)


REFUSED = {  # a change of the metadata, None to leave the field out: what is said after the path
    "no network": ({"network": None}, r"network must be one of \['DigitClassifier', 'DigitUNet', .*\], got None"),
    "unknown network": ({"network": "GigaNet"}, r"network must be one of \[.*'DigitUNet', .*\], got 'GigaNet'"),
    "no schedule": ({"schedule": None}, r"schedule must be one of \['cosine', 'vp_linear'\], got None"),
    "unknown schedule": ({"schedule": "sigmoid"}, r"schedule must be one of \['cosine', .*\], got 'sigmoid'"),
    "a list for a schedule": ({"schedule": ["cosine"]}, ".*"),
    "no arguments of the schedule": ({"schedule_arguments": None}, r"schedule_arguments .*\['beta_max', 'beta_min'\]"),
    "another schedule's arguments": ({"schedule": "cosine"}, r"schedule_arguments .*\['log_snr_max', 'log_snr_min'\]"),
    "one argument missing": ({"schedule_arguments": {"beta_min": 0.2}}, "schedule_arguments .*, got .*0.2"),
    "an argument in words": ({"schedule_arguments": {"beta_min": 0.2, "beta_max": "15"}}, "schedule_arguments .*'15'"),
    "an impossible argument": ({"schedule_arguments": {"beta_min": -1, "beta_max": 2}}, "beta_min, beta_max must .*"),
    "no prediction": ({"prediction": None}, r"prediction of a DigitUNet must be .* got None"),
    "unknown prediction": ({"prediction": "x1"}, r"prediction of a DigitUNet .*\['v', 'eps', 'x0'\], got 'x1'"),
    "a classifier's prediction": ({"prediction": "logits"}, r"prediction of a DigitUNet .*'x0'\], got 'logits'"),
    "no data set": ({"data": None}, r"data must be one of \['embedded', 'mnist'\], got None"),
    "unknown data set": ({"data": "imagenet"}, r"data must be one of \['embedded', 'mnist'\], got 'imagenet'"),
    "no size": ({"size": None}, "size must be 8 for the data set 'embedded', got None"),
    "another size": ({"size": 28}, "size must be 8 for the data set 'embedded', got 28"),
    "arguments of another network": ({"arguments": {"depth": 3}}, "arguments must be those of DigitUNet, got .*depth"),
    "no arguments": ({"arguments": None}, "arguments must be those of DigitUNet, got None"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_does_not_say_what_its_network_is_for_is_refused_by_its_name(saved, what):
    """Nothing is guessed in its place: a wrong schedule, prediction or size draws nonsense without a word."""
    change, says = REFUSED[what]
    tensors, metadata = checkpoints.load_tensors(saved)
    metadata |= change
    for field in [name for name, value in change.items() if value is None]:
        del metadata[field]
    checkpoints.save_tensors(saved, tensors, metadata)
    with pytest.raises(ValueError, match=f"^path {re.escape(str(saved))} is not a network that this .* use: {says}"):
        checkpoints.load(saved)


def test_a_training_state_is_not_taken_for_a_network(tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoints.save_tensors(path, {"a": torch.zeros(3)}, {"step": 3})
    with pytest.raises(ValueError, match=r"other.safetensors .* network must be one of .*DigitUNet.*, got None"):
        checkpoints.load(path)


@pytest.mark.parametrize("field", ["network", "schedule", "prediction", "data"])
def test_what_cannot_be_loaded_cannot_be_saved(field):
    with pytest.raises(ValueError, match=f"^{field} .*must be one of .*, got 'magic'$"):
        blueprint(**{field: "magic"})


def test_a_loaded_network_carries_its_schedule_and_its_size(saved):
    loaded = checkpoints.load(saved)
    network, card = loaded
    assert loaded.network is network and loaded.card is card and len(loaded) == 2
    assert loaded.schedule is network.schedule and isinstance(network.schedule, LinearSchedule)
    t, own = torch.linspace(0.1, 1, 10, dtype=torch.float64), vp_linear(0.2, 15.0)
    assert float((network.schedule.log_snr(t) - own.log_snr(t)).abs().max()) == 0
    assert network.size == 8
    saved.with_suffix(".json").unlink()  # the card is for people
    network, card = checkpoints.load(saved)
    assert card == {} and network.size == 8 and isinstance(network.schedule, LinearSchedule)


def test_weights_that_do_not_fit_the_network_are_refused_with_the_path(tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoints.save(path, blueprint(arguments={**SMALL, "classes": 4}), small().state_dict(), {})
    with pytest.raises(ValueError, match=re.escape(f"path {path} does not fit this version's DigitUNet")):
        checkpoints.load(path)


@pytest.mark.parametrize("change", ["a tensor less", "a tensor more"])
def test_weights_with_a_tensor_less_or_more_are_refused_with_the_path(tmp_path, change):
    path, state = tmp_path / "other.safetensors", small().state_dict()
    if change == "a tensor less":
        del state["enter.bias"]
    else:
        state["another.bias"] = torch.zeros(3)
    checkpoints.save(path, blueprint(), state, {})
    with pytest.raises(ValueError, match=re.escape(f"path {path} does not fit this version's DigitUNet")):
        checkpoints.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, 70_000.0])
def test_weights_that_half_precision_cannot_hold_are_not_saved(tmp_path, value):
    """A weight of 70,000 is infinite in half precision."""
    path, weights = tmp_path / "mine.safetensors", small().state_dict()
    weights["enter.weight"][1, 2, 0, 0] = value
    with pytest.raises(ValueError, match="^weights must be finite in half precision, enter.weight is not$"):
        checkpoints.save(path, blueprint(), weights, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_file_with_nan_or_infinity_in_its_weights_is_refused_by_its_name(saved, value):
    tensors, metadata = checkpoints.load_tensors(saved)
    tensors["leave.2.bias"][3] = value
    checkpoints.save_tensors(saved, tensors, metadata)
    with pytest.raises(ValueError, match=f"^path {re.escape(str(saved))} is damaged, .*: leave.2.bias has NaN or inf"):
        checkpoints.load(saved)


def test_json_without_numbers_for_nan_is_never_written(saved):
    before = saved.read_bytes(), saved.with_suffix(".json").read_bytes()
    for write in (
        lambda: checkpoints.write_card(saved, {"loss": [[1, math.nan]]}),
        lambda: checkpoints.save_tensors(saved, {"a": torch.zeros(1)}, {"loss": math.inf}),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()
    assert (saved.read_bytes(), saved.with_suffix(".json").read_bytes()) == before
    assert len(list(saved.parent.iterdir())) == 2


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"path {tmp_path / 'no.safetensors'} does not exist")):
        checkpoints.load(tmp_path / "no.safetensors")


@pytest.mark.parametrize("name", ["nobody", "runs/denoiser"])
def test_an_unknown_shipped_name_lists_those_there_are(name):
    """Also a path whose suffix was forgotten: never the shipped network of the same name in its place."""
    listed = re.escape(str([*NETWORKS]))
    with pytest.raises(ValueError, match=rf"^name must be one of {listed}, got '.*(nobody|denoiser)'$"):
        checkpoints.load(name)


def test_nothing_in_the_package_can_unpickle():
    """A pickle may run any code when it is loaded; safetensors cannot."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
    assert not re.findall(r"\btorch\.(load|save)\b|\bimport (pickle|joblib|dill)\b|allow_pickle", sources)


# ---- what ships


def test_the_shipped_files_are_those_of_named_recipes_and_under_11_and_a_half_mb():
    assert CLASSES.keys() <= NETWORKS.keys() <= recipes.RECIPES.keys()
    files = sorted(WEIGHTS.iterdir())
    names = sorted([*NETWORKS, *OF_REAL_DIGITS])
    expected = [f"{name}.{suffix}" for name in names for suffix in ("json", "safetensors")]
    assert [file.name for file in files] == expected
    assert sum(file.stat().st_size for file in files) < 11.5e6
    for name in names:
        with safe_open(checkpoints.shipped(name), framework="pt") as file:
            assert all(bool(file.get_tensor(key).isfinite().all()) for key in file.keys())


@every_network
def test_a_shipped_network_is_what_its_card_says(name):
    network, card = checkpoints.load(name)
    classes = captions.SENTENCES if recipes.recipe(name).task in OF_SENTENCES else 10
    assert type(network) is NETWORKS[name] and network.classes == classes
    about = checkpoints.load_tensors(checkpoints.shipped(name))[1]
    written = json.loads(json.dumps(recipes.recipe(name).blueprint.write()))  # JSON knows lists, but no tuples
    assert about == written | {"recipe": card["recipe"]}
    assert network.size == data.DATASETS[card["recipe"]["data"]].size == 28
    assert isinstance(network.schedule, CosineSchedule)
    assert (network.schedule.log_snr_max, network.schedule.log_snr_min) == (20, -20)
    assert card["task"] == card["recipe"]["task"] == recipes.recipe(name).task
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["data_sha256"] == data.data_hash("mnist") and card["recipe"]["data"] == "mnist"
    assert card["command"].startswith(f"difflesson train {name}")
    assert card["device"] in ("cpu", "cuda", "mps") and card["precision"] in ("no", "bf16")
    assert card["seconds"] > 0 and card["difflesson"] and card["torch"]
    assert not any(part in json.dumps(card) for part in ("/home", "/tmp", "/work", "/Users", "\\\\"))


@every_network
def test_the_recipe_of_a_shipped_network_is_the_default_recipe(name):
    """So that `difflesson train NAME` without options makes it again. A field that it does not say is a younger one."""
    card = json.loads(checkpoints.shipped(name).with_suffix(".json").read_text(encoding="utf-8"))
    written = asdict(recipes.Recipe(card["task"])) | {"name": name} | card["recipe"]
    assert written == json.loads(json.dumps(asdict(recipes.recipe(name))))


@every_network
def test_the_loss_of_a_shipped_network_went_down_to_the_last_step(name):
    _, card = checkpoints.load(name)
    steps, losses = zip(*card["loss"], strict=True)
    assert list(steps) == sorted(set(steps)) and steps[-1] == card["recipe"]["steps"]
    tenth = len(losses) // 10
    begun = 1.0 if card["recipe"].get("start") else 0.8  # with one that was trained already
    assert sum(losses[-tenth:]) < begun * sum(losses[:tenth])


def test_the_card_of_the_denoiser_reports_the_quality_that_was_asked_for():
    """10,000 digits in at most 50 steps: accuracy by the judge, and digit-FID against its floor.

    That the numbers are true is for `difflesson evaluate` to show, in minutes; test_digit_sampling draws 200.
    """
    _, card = checkpoints.load("denoiser")
    _, reference = metrics.load_reference()
    rows = []
    for setting, curve in card["metrics"].items():
        steps, count = (int(re.search(rf"(\d+) {what}", setting)[1]) for what in ("steps", "digits"))
        assert steps <= 50 and count == 10_000 and setting.startswith("classifier")
        rows += [(float(gamma), row["accuracy"], row["digit_fid"]) for gamma, row in curve.items()]
    assert max(accuracy for gamma, accuracy, _ in rows if gamma == 1) >= 0.985
    assert max(accuracy for _, accuracy, _ in rows) >= 0.999
    assert min(distance for _, _, distance in rows) <= 5 * reference["digit_fid_floor"]


def test_the_pocket_network_fits_a_phone_and_its_card_reports_the_quality_that_was_asked_for():
    """At most 300,000 weights, 15 million multiply-adds a call, 700 kB; 97.5 % right at gamma 1 in at most 12 steps."""
    network, card = checkpoints.load("pocket")
    one = torch.zeros(1, 1, 28, 28), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(*one)
    assert card["parameters"] <= 300_000 and counted.get_total_flops() <= 2 * 15e6
    assert checkpoints.shipped("pocket").stat().st_size <= 700_000
    ((setting, curve),) = card["metrics"].items()
    assert int(re.search(r"(\d+) steps, 10000 digits", setting)[1]) <= 12 and curve["1"]["accuracy"] >= 0.975


def test_the_shipped_reference_is_of_the_ten_thousand_test_images():
    statistics, card = metrics.load_reference()
    assert statistics.mean.shape == (128,) and statistics.cov.shape == (128, 128)
    assert statistics.mean.dtype == statistics.cov.dtype == torch.float64
    assert statistics.count == card["images"] == 10_000
    assert card["data_sha256"] == data.data_hash("mnist")
    assert card["judge_accuracy_on_test"] >= 0.995
    assert 0 < card["digit_fid_floor"] < 0.1 * float(statistics.cov.trace())
    assert float((statistics.cov - statistics.cov.T).abs().max()) < 1e-12
    assert float(torch.linalg.eigvalsh(statistics.cov)[0]) > -1e-9
    written = json.loads(checkpoints.shipped("reference").with_suffix(".json").read_text(encoding="utf-8"))
    assert written == card  # the readable card is the one inside


def test_loading_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    checkpoints.load("pocket")
    assert torch.equal(torch.get_rng_state(), before)


def test_only_networks_are_offered_where_a_name_is_unknown():
    with pytest.raises(ValueError, match="name must be one of .*denoiser") as refused:
        checkpoints.shipped("nobody")
    offered = re.findall(r"'(\w+)'", str(refused.value).split("]")[0])
    for name in offered:
        assert "network" in checkpoints.load_tensors(checkpoints.shipped(name))[1]
    others = {path.stem for path in checkpoints.shipped("denoiser").parent.glob("*.safetensors")} - {*offered}
    assert others and not any("network" in checkpoints.load_tensors(checkpoints.shipped(name))[1] for name in others)
