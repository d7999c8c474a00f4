"""Recipes: each has a name, under which its network is trained, saved and found again."""

import pytest
import torch

from difflesson.digits import checkpoints, lessons, sampling, training
from difflesson.digits.recipes import RECIPES, TASKS, Recipe, recipe

SMALL = {"data": "embedded", "batch": 16, "warmup": 2, "arguments": (("widths", (8, 16)), ("embedding", 16))}


def test_every_named_recipe_is_allowed_and_bears_its_name():
    for name in RECIPES:
        made = recipe(name)
        assert made.name == name and (made.data, made.prediction, made.weighting) == ("mnist", "v", "plain")
    others = {"judge", "guide", "clean", "words", "towers", "noisy_towers", "other_towers"}
    assert {name for name in RECIPES if recipe(name).task != "denoiser"} == others
    assert Recipe("judge").name == "judge" and recipe("pocket", seed=4).name == "pocket"


def test_each_recipe_that_begins_with_or_learns_from_another_names_one_that_comes_before_it():
    """So that they can be trained one after the other in one folder."""
    names = list(RECIPES)
    for place, name in enumerate(names):
        for ancestor in {recipe(name).start, recipe(name).teacher} - {"", "itself"}:
            assert ancestor in names[:place]


def test_the_pocket_networks_are_of_one_size_and_small():
    """At most 300,000 weights, and 700 kB in half precision."""
    sizes = {sum(w.numel() for w in training.build(recipe(n)).parameters()) for n in RECIPES if n.startswith("pocket")}
    assert len(sizes) == 1 and max(sizes) <= 300_000
    dropouts = {name: recipe(name).label_dropout for name in RECIPES if name.startswith("pocket_p")}
    assert dropouts == {"pocket_p02": 0.02, "pocket_p10": 0.1, "pocket_p50": 0.5}
    others = [{**vars(recipe(name)), "name": "", "label_dropout": 0} for name in dropouts]
    assert all(other == others[0] for other in others)  # they differ in nothing else


def test_a_recipe_is_saved_under_its_name(tmp_path):
    made = recipe("pocket_p50", **SMALL, steps=2)
    path = training.train(made, tmp_path, device="cpu", precision="no", progress=False)
    assert path == tmp_path / "pocket_p50.safetensors"
    assert checkpoints.load_tensors(path)[1]["recipe"]["name"] == "pocket_p50"
    assert checkpoints.load(path).card["command"].startswith("difflesson train pocket_p50 --device cpu")


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_a_network_that_predicts_something_else_than_v_is_trained_saved_and_sampled(tmp_path, prediction):
    """What its output means comes with the checkpoint, and is what it was trained on."""
    made = recipe("denoiser", **SMALL, prediction=prediction, steps=40, learning_rate=1e-2)
    path = training.train(made, tmp_path, device="cpu", precision="no", progress=False, save_every=10)
    network, card = checkpoints.load(path)
    assert network.prediction == prediction and card["loss"][-1][1] < 0.9 * card["loss"][0][1]
    images = sampling.generate(network, torch.arange(6), 1.0, steps=4)
    assert images.shape == (6, 1, 8, 8) and bool(images.isfinite().all())
    network.prediction = "v"  # read in other terms, it draws something else
    assert float((sampling.generate(network, torch.arange(6), 1.0, steps=4) - images).abs().max()) > 0.1


def test_the_loss_of_training_is_that_of_the_recipes_prediction_and_weighting(monkeypatch):
    seen = {}
    monkeypatch.setattr(lessons, "denoising_loss", lambda *_, **options: seen.update(options))
    made = recipe("denoiser", prediction="x0", weighting="min_snr", teacher="pocket")
    lessons.denoiser_loss(None, None, None, made, None, 10, "the teacher")
    assert seen == {"prediction": "x0", "weighting": "min_snr", "teacher": "the teacher", "only_hidden": False}
    lessons.denoiser_loss(None, None, None, recipe("denoiser", teacher="itself"), None, 10, "itself")
    assert seen["only_hidden"] and (seen["prediction"], seen["weighting"]) == ("v", "plain")


def test_every_task_has_a_network_and_a_loss():
    assert lessons.LOSSES.keys() == TASKS.keys()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"steps": "3"}, "steps must be an integer of at least 1, got '3'"),
        ({"steps": 3.5}, "steps must be an integer of at least 1, got 3.5"),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"learning_rate": "2e-3"}, "learning_rate must be a number, got '2e-3'"),
    ],
    ids=str,
)
def test_a_number_of_another_kind_is_refused_by_name(change, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        recipe("pocket", **change)


@pytest.mark.parametrize("change", [{"prediction": "eps"}, {"weighting": "min_snr"}, {"label_dropout": 0.5}], ids=str)
def test_what_a_task_does_not_look_at_is_not_accepted(change):
    ((field, value),) = change.items()
    for name in ("judge", "guide", "clean", "towers", "noisy_towers"):
        with pytest.raises(ValueError, match=f"^{field} must be .* only denoisers have one, got {value!r}"):
            recipe(name, **change)
    for name in ("denoiser", "pocket", "words"):
        assert getattr(recipe(name, **change), field) == value


def test_a_network_of_these_recipes_is_float32_whatever_the_default():
    wanted = training.build(recipe("pocket", **SMALL))
    torch.set_default_dtype(torch.float64)
    try:
        found = training.build(recipe("pocket", **SMALL))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in found.state_dict().values()} == {torch.float32}
    assert found.state_dict().keys() == wanted.state_dict().keys()


def test_a_new_network_leaves_every_global_generator_as_it_was(monkeypatch):
    """Those of GPUs too, which torch.manual_seed seeds; and it is the network that this seeding gave."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(5)
    assert seeded or not hasattr(torch.cuda, "manual_seed_all")
    seeded.clear()
    before = torch.get_rng_state()
    made = recipe("pocket", **SMALL, seed=3)
    network = training.build(made)
    assert seeded == [] and torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    plainly = made.blueprint.build()
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), plainly.parameters(), strict=True))
