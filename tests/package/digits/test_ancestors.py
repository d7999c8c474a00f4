"""Runs that begin with a checkpoint, or learn from one or from themselves: the same if killed, refused if it changed.

Everything runs on tiny networks and the embedded 8x8 digits.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from difflesson.digits import ancestors, checkpoints, data, lessons, training
from difflesson.digits.recipes import Recipe, recipe
from difflesson.digits.training import batch_indices, step_generator

TINY = (("widths", (8, 16)), ("embedding", 16))
SMALLER = (("widths", (8, 8)), ("embedding", 16))


def tiny(task: str = "denoiser", **changes) -> Recipe:
    base = {"data": "embedded", "steps": 6, "batch": 16, "warmup": 2, "arguments": TINY}
    return recipe(task, **base | ({"label_dropout": 0.5} if task == "denoiser" else {}) | changes)


def run(folder: Path, made: Recipe, **options) -> Path:
    return training.train(made, folder, device="cpu", precision="no", progress=False, save_every=2, **options)


def card(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> bytes:
    """A checkpoint of a denoiser, as a file's content."""
    return run(tmp_path_factory.mktemp("old"), tiny(steps=12, learning_rate=1e-2)).read_bytes()


@pytest.fixture
def folder(tmp_path, old) -> Path:
    """A folder of runs with the checkpoint `old.safetensors` in it, which comes with no card."""
    (tmp_path / "old.safetensors").write_bytes(old)
    return tmp_path


def interrupt(monkeypatch, folder: Path, made: Recipe) -> Path:
    """A run that stops at the beginning of step 5; answers its state, which is at step 4."""

    def stop(made, step, original=training.learning_rate):
        if step == 5:
            raise KeyboardInterrupt
        return original(made, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "learning_rate", stop)
        run(folder, made)
    return folder / f"{made.task}-state.safetensors"


WAYS = [{"teacher": "old"}, {"start": "old", "teacher": "itself"}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_interrupted_run_with_a_start_and_a_teacher_ends_in_the_same_bytes_and_names_them_with_their_hashes(
    folder, monkeypatch, way
):
    whole = run(folder, tiny(**way))
    content = whole.read_bytes()
    whole.unlink()
    sha256 = hashlib.sha256((folder / "old.safetensors").read_bytes()).hexdigest()
    origin = {f"{role}_sha256": sha256 for role, name in way.items() if name == "old"}
    metadata = checkpoints.load_tensors(interrupt(monkeypatch, folder, tiny(**way)))[1]
    assert metadata["step"] == 4
    assert {name: value for name, value in metadata["setting"].items() if "sha256" in name} == origin
    assert run(folder, tiny(**way)).read_bytes() == content
    written = card(whole)
    assert {name: value for name, value in written.items() if name in ("start_sha256", "teacher_sha256")} == origin
    assert way.items() <= written["recipe"].items()


def test_a_run_begins_with_the_weights_of_its_start(folder):
    """With a learning rate of almost nothing, what comes out is what went in, whatever the seed."""
    there = checkpoints.load_tensors(folder / "old.safetensors")[0]
    kept = checkpoints.load_tensors(run(folder, tiny(start="old", steps=1, learning_rate=1e-12, seed=5)))[0]
    assert kept.keys() == there.keys() and all(torch.equal(kept[name], there[name]) for name in there)
    first = training.build(tiny(seed=5)).state_dict()
    assert any(not torch.equal(there[name].float(), first[name]) for name in there)


def losses_by_hand(made: Recipe, network, teacher) -> list[float]:
    """Of the first two steps, without learning: the mean square distance to the target that each row should have."""
    digits, found = data.load("embedded", "train"), []
    for step in range(2):
        chosen, generator = batch_indices(made, len(digits.images), step), step_generator(made.seed, step, 2)
        x0, label = data.to_unit(digits.images)[chosen], digits.labels[chosen]
        t = (torch.rand((), generator=generator) + torch.arange(16) / 16) % 1
        eps = torch.randn(x0.shape, generator=generator)
        hidden = torch.rand(16, generator=generator) < made.label_dropout
        alpha, sigma = (level(t).reshape(-1, 1, 1, 1) for level in (made.noise.alpha, made.noise.sigma))
        x, log_snr, target = alpha * x0 + sigma * eps, made.noise.log_snr(t), alpha * eps - sigma * x0
        with torch.no_grad():
            taught = hidden if made.teacher == "itself" else torch.ones_like(hidden)
            target = torch.where(taught[:, None, None, None], teacher(x, log_snr, label), target)
            answer = network(x, log_snr, label.masked_fill(hidden, 10))
        found.append(float((answer - target).square().mean()))
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_each_row_learns_from_its_own_teacher(folder, monkeypatch, way):
    """The losses of the first steps, at a learning rate of almost nothing, recomputed from the draws of the recipe.

    With "itself", the average is still the network that the run began with.
    """
    made, seen = tiny(**way, steps=2, learning_rate=1e-12), []

    def keep(*arguments, original=lessons.denoiser_loss):
        loss = original(*arguments)
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setitem(lessons.LOSSES, "denoiser", keep)
    run(folder, made)
    there = checkpoints.load(folder / "old.safetensors").network
    network = there if made.start else training.build(made)
    expected = losses_by_hand(made, network, there if made.teacher == "old" else network)
    assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) < 1e-5
    other = losses_by_hand(made, network, lambda x, *_: torch.ones_like(x))
    assert min(abs(a - b) for a, b in zip(expected, other, strict=True)) > 1e-3


def test_a_run_taught_by_itself_asks_the_running_average_of_its_weights(folder, monkeypatch):
    asked = []

    def keep(*arguments, original=lessons.denoiser_loss):
        asked.append((arguments[-1], arguments[0]))
        return original(*arguments)

    monkeypatch.setitem(lessons.LOSSES, "denoiser", keep)
    path = run(folder, tiny(teacher="itself", ema_decay=0.5))
    (average, network), *rest = asked
    assert all(teacher is average for teacher, _ in rest) and average is not network
    for name, weight in checkpoints.load_tensors(path)[0].items():
        assert torch.equal(weight, average.module.state_dict()[name].half())
    assert any(not torch.equal(*pair) for pair in zip(average.parameters(), network.parameters(), strict=True))


def test_a_teacher_learns_nothing(folder, monkeypatch):
    teachers = []

    def keep(*arguments, original=lessons.denoiser_loss):
        teachers.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setitem(lessons.LOSSES, "denoiser", keep)
    run(folder, tiny(teacher="old", steps=3))
    kept = checkpoints.load(folder / "old.safetensors").network.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in teachers[-1].state_dict().items())


def test_a_smaller_network_learns_from_a_larger_teacher(folder):
    path = run(folder, tiny(teacher="old", arguments=SMALLER, steps=1))
    assert path.stat().st_size < (folder / "old.safetensors").stat().st_size


@pytest.mark.parametrize("role", ["start", "teacher"])
def test_another_start_or_teacher_than_the_states_is_refused(folder, monkeypatch, role):
    """Another name is another recipe; the same name with other bytes is told by its hash."""
    state = interrupt(monkeypatch, folder, tiny(**{role: "old"}))
    before, old = state.read_bytes(), (folder / "old.safetensors").read_bytes()
    (folder / "other.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match="^folder holds the state of another recipe"):
        run(folder, tiny(**{role: "other"}))
    with pytest.raises(ValueError, match="^folder holds the state of another recipe"):
        run(folder, tiny())
    tensors, metadata = checkpoints.load_tensors(folder / "old.safetensors")
    tensors["enter.bias"] += 1
    checkpoints.save_tensors(folder / "old.safetensors", tensors, metadata)
    sha256 = "'[0-9a-f]{64}'"
    with pytest.raises(ValueError, match=rf"^{role}_sha256 must be {sha256} to go on from .*, got {sha256}"):
        run(folder, tiny(**{role: "old"}))
    assert state.read_bytes() == before


def test_a_checkpoint_in_the_folder_comes_before_the_shipped_one_of_the_same_name(folder):
    (folder / "denoiser.safetensors").write_bytes((folder / "old.safetensors").read_bytes())
    found = ancestors.find(tiny(start="denoiser"), folder)["start"]
    assert found.sha256 == hashlib.sha256((folder / "denoiser.safetensors").read_bytes()).hexdigest()
    made = recipe("denoiser", teacher="denoiser")
    shipped = ancestors.find(made, folder / "empty")["teacher"]
    assert shipped.sha256 == hashlib.sha256(checkpoints.shipped("denoiser").read_bytes()).hexdigest()


@pytest.mark.parametrize("role", ["start", "teacher"])
def test_a_start_or_a_teacher_that_is_not_there_is_refused_with_what_makes_it(tmp_path, role):
    says = rf"^{role} must be a checkpoint in .*, where `difflesson train nobody --folder .*` puts it.*got 'nobody'"
    with pytest.raises(ValueError, match=says):
        run(tmp_path / "new", tiny(**{role: "nobody"}))
    assert not (tmp_path / "new").exists()


def test_a_damaged_teacher_is_refused(folder):
    content = bytearray((folder / "old.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "old.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"old.safetensors is not a readable difflesson checkpoint"):
        run(folder, tiny(teacher="old"))


def test_a_start_of_another_size_or_kind_and_a_teacher_for_other_images_are_refused(folder):
    for made in (tiny(start="old", arguments=SMALLER), tiny("judge", start="old")):
        with pytest.raises(ValueError, match=r"^start must fit the Digit\w+ of .* for 8x8 images to be trained, "):
            run(folder, made)
    with pytest.raises(ValueError, match=r"^teacher must be like the DigitUNet .* is a DigitUNet .* for 28x28 images$"):
        run(folder, tiny(teacher="denoiser"))
    with pytest.raises(ValueError, match=r"^teacher must be like the DigitUNet .* is a DigitClassifier "):
        run(folder, tiny(teacher="judge"))
    for role in ("start", "teacher"):
        with pytest.raises(ValueError, match=rf"^{role} must .* predicts eps .* is a DigitUNet .* predicts v "):
            run(folder, tiny(**{role: "old"}, prediction="eps"))


@pytest.mark.parametrize("name", ["../old", "old.safetensors", "Old", "a b", None], ids=str)
@pytest.mark.parametrize("role", ["start", "teacher"])
def test_what_is_no_name_of_a_checkpoint_is_refused(role, name):
    with pytest.raises(ValueError, match=rf"^{role} must be .*, or empty, got "):
        tiny(**{role: name})


def test_a_classifier_has_no_teacher():
    with pytest.raises(ValueError, match="^teacher must be empty for a judge, only a denoiser has one, got 'itself'"):
        tiny("judge", teacher="itself")


def test_a_run_with_a_start_leaves_the_global_random_numbers_alone(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(folder, tiny(start="old", teacher="old", steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_hides_no_label_has_nothing_to_ask_itself(tmp_path):
    """And ends in the weights of one without a teacher."""
    weights = []
    for teacher in ("itself", ""):
        path = run(tmp_path / (teacher or "nobody"), tiny(teacher=teacher, label_dropout=0.0))
        weights.append(checkpoints.load_tensors(path)[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
