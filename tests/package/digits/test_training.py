"""Training: the right loss, a killed run that goes on as if nothing had happened, processes that act as one.

Everything runs on tiny networks and the embedded 8x8 digits: no download, seconds.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import difflesson
from difflesson.digits import checkpoints, data, lessons, training
from difflesson.digits.recipes import Recipe, recipe
from difflesson.digits.training import batch_indices, learning_rate, step_generator, train

TINY = (("widths", (8, 16)), ("embedding", 16))
ROOT = Path(__file__).resolve().parents[3]


def tiny(task: str = "denoiser", **changes) -> Recipe:
    """A recipe of a second: the embedded digits, a network of a few thousand weights."""
    base = {"data": "embedded", "steps": 8, "batch": 16, "warmup": 2, "arguments": TINY}
    return recipe(task, **base | changes)


def run(folder: Path, made: Recipe, **options) -> Path:
    """Train quietly on the CPU."""
    return train(made, folder, device="cpu", precision="no", progress=False, **options)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint or a state holds, in float64."""
    return {name: tensor.double() for name, tensor in checkpoints.load_tensors(path)[0].items()}


def card(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def worst(a: dict, b: dict) -> float:
    """Maximum absolute difference over all weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def environment(**more: str) -> dict[str, str]:
    """For a child process: this checkout, as many threads as here (sums depend on them), no MNIST."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("DIFFLESSON_DATA", "PYTHONWARNINGS")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    return inherited | threads | {"PYTHONPATH": str(ROOT)} | more


def interrupt_at(monkeypatch, step: int) -> None:
    """Let the run stop with a KeyboardInterrupt at the beginning of a step."""

    def stop(made, now, original=training.learning_rate):
        if now == step:
            raise KeyboardInterrupt
        return original(made, now)

    monkeypatch.setattr(training, "learning_rate", stop)


# ---- a killed run goes on

# The child sleeps in every step, which changes no number, so that it is still at work when it is killed.
CHILD = """
import sys, time
from pathlib import Path
from difflesson.digits import recipes, training

def slow(made, step, original=training.learning_rate):
    time.sleep(0.05)
    return original(made, step)

training.learning_rate = slow
made = recipes.recipe("denoiser", data="embedded", steps=40, batch=16, warmup=2, arguments=%r)
training.train(made, Path(sys.argv[1]), device="cpu", precision="no", progress=False, save_every=4)
"""


def test_a_run_killed_and_started_again_ends_in_the_same_weights(tmp_path):
    """Killed by kill -9 (TerminateProcess on Windows); the weights agree to the last bit."""
    made, state = tiny(steps=40), tmp_path / "killed" / "denoiser-state.safetensors"
    child = subprocess.Popen([sys.executable, "-c", CHILD % (TINY,), state.parent], env=environment())
    deadline = time.monotonic() + 600
    while not state.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == (1 if sys.platform == "win32" else -signal.SIGKILL)
    assert state.exists() and not (tmp_path / "killed" / "denoiser.safetensors").exists()
    assert 4 <= checkpoints.load_tensors(state)[1]["step"] < 40

    whole, resumed = run(tmp_path / "whole", made, save_every=4), run(state.parent, made, save_every=4)
    assert worst(weights(whole), weights(resumed)) == 0
    assert card(whole)["loss"] == card(resumed)["loss"] and len(card(whole)["loss"]) == 10
    assert not state.exists()  # a finished run leaves nothing to resume
    assert worst(weights(whole), weights(run(tmp_path / "other", replace(made, seed=1)))) > 1e-3


@pytest.mark.parametrize("task", ["judge", "guide"])
def test_an_interrupted_run_of_a_classifier_ends_in_the_same_weights(tmp_path, monkeypatch, task):
    made = tiny(task)
    whole = run(tmp_path / "whole", made, save_every=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        run(tmp_path / "cut", made, save_every=3)
    assert worst(weights(whole), weights(run(tmp_path / "cut", made, save_every=3))) == 0


def test_an_interrupted_save_leaves_a_state_to_resume_from(tmp_path, monkeypatch):
    made, state = tiny(), tmp_path / "cut" / "denoiser-state.safetensors"
    whole, saves = run(tmp_path / "whole", made, save_every=2), []

    def fails_the_second_time(tensors, filename, metadata, original=checkpoints.save_file):
        saves.append(filename)
        original(tensors, filename, metadata)
        if len(saves) == 2:
            content = Path(filename).read_bytes()
            Path(filename).write_bytes(content[: len(content) // 2])
            raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(checkpoints, "save_file", fails_the_second_time)
        run(state.parent, made, save_every=2)
    assert checkpoints.load_tensors(state)[1]["step"] == 2
    assert worst(weights(whole), weights(run(state.parent, made, save_every=2))) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 9},
        {"learning_rate": 1e-3},
        {"arguments": (("widths", (8, 24)),)},
        {"schedule_arguments": (("log_snr_max", 10.0),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_state_of_another_recipe_is_refused_and_left_alone(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3)
        run(tmp_path, tiny(), save_every=2)
    state = tmp_path / "denoiser-state.safetensors"
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"^folder holds the state of another recipe \(.*denoiser-state.saf"):
        run(tmp_path, tiny(**change))
    assert state.read_bytes() == before


def test_a_damaged_state_is_refused_by_its_name(tmp_path):
    state = tmp_path / "denoiser-state.safetensors"
    state.write_bytes(b"12345")
    with pytest.raises(ValueError, match="denoiser-state.safetensors is not a readable difflesson"):
        run(tmp_path, tiny())
    checkpoints.save_tensors(state, {"a": torch.zeros(1)}, {"network": "DigitUNet"})
    with pytest.raises(ValueError, match="folder holds the state of another recipe"):
        run(tmp_path, tiny())


def test_a_state_of_another_setting_is_refused_and_left_alone(tmp_path, monkeypatch):
    """Precision, device, processes, compilation change the result, and the card would name the last of them only."""
    state = tmp_path / "denoiser-state.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3)
        run(tmp_path, tiny(), save_every=2)
    tensors, metadata = checkpoints.load_tensors(state)
    setting = {"device": "cpu", "precision": "no", "processes": 1, "compiled": False}
    assert metadata["setting"] == setting
    for name, other in {"device": "cuda", "precision": "bf16", "processes": 2, "compiled": True}.items():
        checkpoints.save_tensors(state, tensors, metadata | {"setting": setting | {name: other}})
        before = state.read_bytes()
        with pytest.raises(ValueError, match=f"^{name} must be {other!r} to go on .*state.*, got {setting[name]!r}"):
            run(tmp_path, tiny())
        assert state.read_bytes() == before
    checkpoints.save_tensors(state, tensors, metadata)
    assert run(tmp_path, tiny()).exists()


# ---- a run that diverges


def broken_from(monkeypatch, step: int, value: float) -> None:
    """Let the loss be NaN or infinite from this step on, counted from 1."""
    calls = []

    def loss(*arguments, original=lessons.denoiser_loss):
        calls.append(None)
        return original(*arguments) * (value if len(calls) >= step else 1)

    monkeypatch.setitem(lessons.LOSSES, "denoiser", loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_state(tmp_path, monkeypatch, value):
    state, whole = tmp_path / "cut" / "denoiser-state.safetensors", run(tmp_path / "whole", tiny(), save_every=2)
    with monkeypatch.context() as patch:
        broken_from(patch, 6, value)
        says = r"^training diverged: after 6 of 8 steps the loss of step 6 .* good state is .*-state.safetensors\. .*"
        with pytest.raises(FloatingPointError, match=says + "learning rate below 0.002 or a warmup above 2 steps"):
            run(state.parent, tiny(), save_every=2)
    assert list(state.parent.iterdir()) == [state]
    assert checkpoints.load_tensors(state)[1]["step"] == 4
    assert all(bool(w.isfinite().all()) for w in weights(state).values())
    assert worst(weights(whole), weights(run(state.parent, tiny(), save_every=2))) == 0  # and it is a good one


def test_the_first_bad_loss_of_many_is_named(tmp_path, monkeypatch):
    broken_from(monkeypatch, 3, math.nan)
    with pytest.raises(FloatingPointError, match="after 8 of 8 steps the loss of step 3 .*; no state was saved"):
        run(tmp_path, tiny())
    assert list(tmp_path.iterdir()) == []


def test_weights_that_went_astray_in_the_last_step_stop_it_too(tmp_path):
    """The only loss is that of the weights before the step: it is fine."""
    with pytest.raises(FloatingPointError, match="after 1 of 1 steps the weights cannot .*below 1e.30 or a warmup"):
        run(tmp_path, tiny(steps=1, learning_rate=1e30))
    assert list(tmp_path.iterdir()) == []


# ---- where the random numbers come from


def test_the_numbers_of_a_step_depend_on_seed_step_and_stream_alone():
    def first(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    keys = [(seed, step, stream) for seed in (0, 1, 7) for step in (0, 1, 2, 18_000) for stream in range(6)]
    numbers = [first(*key) for key in keys]
    assert len({tuple(n) for n in numbers}) == len(keys)
    torch.rand(10)  # whatever else has been drawn
    assert [first(*key) for key in reversed(keys)] == numbers[::-1]


def test_training_neither_uses_nor_disturbs_the_global_random_numbers(tmp_path):
    torch.manual_seed(1)
    one = run(tmp_path / "one", tiny(steps=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = run(tmp_path / "two", tiny(steps=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert worst(weights(one), weights(two)) == 0


# (7, 16): a batch spans three epochs;  (10, 4): it straddles two;  (12, 4): it never does
@pytest.mark.parametrize("size, batch", [(7, 16), (10, 4), (12, 4), (5, 1), (1, 3), (1442, 128)])
def test_every_epoch_is_a_permutation(size, batch):
    made = tiny(batch=batch, seed=3)
    steps = -(-4 * size // batch)
    order = torch.cat([batch_indices(made, size, step) for step in range(steps)])[: 4 * size]
    epochs = order.reshape(4, size)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(size).expand(4, size))
    if size > 4:  # two of 5! orders may agree by chance; these, for this seed, do not
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    again = [batch_indices(made, size, step) for step in reversed(range(steps))]  # in any order of the steps
    assert torch.equal(torch.cat(again[::-1])[: 4 * size], order)


def test_another_seed_shuffles_in_another_way():
    one, two = (torch.cat([batch_indices(tiny(seed=seed), 64, step) for step in range(4)]) for seed in (0, 1))
    assert float((one == two).double().mean()) < 0.25


# ---- learning rate, first step, average


def test_the_learning_rate_warms_up_and_falls_to_zero():
    made = recipe("denoiser", steps=1000, warmup=100, learning_rate=0.5)
    rates = torch.tensor([learning_rate(made, step) for step in range(1000)], dtype=torch.float64)
    assert rates[0] == 0.5 / 100 and rates[99] == rates[100] == rates.max() == 0.5
    assert bool((rates[:100].diff() > 0).all()) and bool((rates[100:].diff() < 0).all())
    assert abs(float(rates[550]) - 0.25) < 1e-12  # half-way down the cosine, a quarter turn
    assert abs(float(rates[100 + 300]) - 0.5 * math.cos(math.pi / 6) ** 2) < 1e-12
    assert 0 < float(rates[-1]) < 0.5 * (math.pi / 900) ** 2  # one step before it would be zero
    assert learning_rate(replace(made, warmup=0), 0) == 0.5
    assert learning_rate(replace(made, warmup=1000), 999) == 0.5


def test_the_first_step_moves_every_weight_by_the_learning_rate(tmp_path):
    """Whatever the gradient, Adam's first step has length 1 in every coordinate, times the learning rate."""
    made = tiny(steps=1, warmup=4, learning_rate=0.02, weight_decay=0.0)
    before = training.build(made).state_dict()
    after = weights(run(tmp_path, made))
    moved = (after["leave.2.bias"] - before["leave.2.bias"].double()).abs()
    assert float((moved - 0.02 / 4).abs().max()) < 1e-5
    decayed = weights(run(tmp_path / "decayed", replace(made, weight_decay=5.0)))
    shrunk = decayed["enter.weight"] - after["enter.weight"]
    assert float((shrunk + 5.0 * 0.02 / 4 * before["enter.weight"]).abs().max()) < 1e-3


def test_three_steps_are_those_of_adam_with_clipped_gradients_by_hand(tmp_path, monkeypatch):
    """beta_1 = 0.9, beta_2 = 0.99, decoupled decay, gradients of length above 1 shortened to 1: in plain formulas."""
    made = tiny(steps=3, warmup=0, learning_rate=0.02, weight_decay=0.1, ema_decay=0.0)
    scale = 50.0  # a loss so large that its gradients are clipped

    def louder(*arguments, original=lessons.denoiser_loss):
        return scale * original(*arguments)

    monkeypatch.setitem(lessons.LOSSES, "denoiser", louder)
    network, digits = training.build(made), data.load("embedded", "train")
    images, lengths = data.to_unit(digits.images), []
    first = [torch.zeros_like(p) for p in network.parameters()]
    second = [torch.zeros_like(p) for p in network.parameters()]
    for step in range(3):
        chosen = batch_indices(made, len(images), step)
        generator = step_generator(made.seed, step, 2)
        loss = louder(network, images[chosen], digits.labels[chosen], made, generator, network.classes)
        network.zero_grad()
        loss.backward()
        lengths.append(float(torch.cat([p.grad.flatten() for p in network.parameters()]).norm()))
        for p, m, v in zip(network.parameters(), first, second, strict=True):
            grad, rate = p.grad / max(1.0, lengths[-1]), learning_rate(made, step)
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.99).add_(0.01 * grad**2)
            bias = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.99 ** (step + 1))
            p.data.mul_(1 - rate * 0.1).sub_(rate * bias[0] / (bias[1].sqrt() + 1e-8))
    assert min(lengths) > 1.5
    kept = weights(run(tmp_path, made))
    # The file holds half precision; where a gradient is nearly zero, its rounding decides which way Adam goes.
    gaps = torch.cat([(kept[name] - p.detach()).abs().flatten() for name, p in network.named_parameters()])
    assert float(gaps.quantile(0.99)) < 5e-4


def test_the_seconds_of_a_card_count_those_before_the_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(training.time, "monotonic", iter(range(0, 10_000, 50)).__next__)  # each look takes 50 seconds
    whole = card(run(tmp_path / "whole", tiny(), save_every=2))["seconds"]
    interrupt_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", tiny(), save_every=2)
    monkeypatch.setattr(training, "learning_rate", learning_rate)
    resumed = card(run(tmp_path / "broken", tiny(), save_every=2))["seconds"]
    assert resumed >= whole > 150


def test_the_checkpoint_holds_the_average_of_the_weights(tmp_path, monkeypatch):
    """It starts with the first weights w1 and follows `average = d average + (1 - d) w`: here by hand."""
    made, states = tiny(steps=4, ema_decay=0.75), []

    def keep(tensors, filename, metadata, original=checkpoints.save_file):
        states.append({name: tensor.double() for name, tensor in tensors.items()})
        original(tensors, filename, metadata)

    monkeypatch.setattr(checkpoints, "save_file", keep)
    shipped = weights(run(tmp_path / "averaged", made, save_every=1))
    monkeypatch.undo()
    last = weights(run(tmp_path / "last", replace(made, ema_decay=0.0)))  # w4, which is in no state
    assert len(states) == 4 and worst(shipped, last) > 1e-3
    for name in shipped:
        w1, w2, w3 = (state[f"network.{name}"] for state in states[:3])
        average = 0.75 * (0.75 * w1 + 0.25 * w2) + 0.25 * w3
        assert float((states[2][f"average.module.{name}"] - average).abs().max()) < 1e-6
        final = 0.75 * average + 0.25 * last[name]
        assert float(((shipped[name] - final) / (1 + final.abs())).abs().max()) < 2**-10  # half precision


# ---- the losses


class Recorder(nn.Module):
    """Answers with zeros, or by a rule, and remembers what it was asked."""

    def __init__(self, rule=lambda x, log_snr, label: torch.zeros_like(x)):
        super().__init__()
        self.rule, self.calls = rule, []

    def forward(self, x, log_snr=None, label=None):
        self.calls.append((x, log_snr, label))
        return self.rule(x, log_snr, label)


def levels(log_snr, x):
    """(alpha, sigma) from the log-SNR alone: alpha^2 is the sigmoid of log alpha^2 / sigma^2."""
    return (torch.sigmoid(sign * log_snr).sqrt().reshape(-1, 1, 1, 1).to(x) for sign in (1, -1))


def images(batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1


def looks_normal(eps: torch.Tensor) -> bool:
    """Mean and variance within 4 standard deviations of those of a standard normal sample of this size."""
    n = eps.numel()
    return abs(float(eps.mean())) < 4 / n**0.5 and abs(float(eps.square().mean()) - 1) < 4 * (2 / n) ** 0.5


@pytest.mark.equation("eq-v-loss")
def test_the_denoiser_that_knows_the_picture_has_no_loss():
    """If all data are one picture c, `eps = (x - alpha c) / sigma` is known, and so is v."""
    c = images(1)

    def oracle(x, log_snr, label):
        alpha, sigma = levels(log_snr, x)
        return alpha * (x - alpha * c) / sigma - sigma * c

    def wrong(x, log_snr, label):
        return -oracle(x, log_snr, label)

    label = torch.zeros(256, dtype=torch.long)
    for rule, low, high in ((oracle, 0, 1e-4), (wrong, 1, 10)):
        loss = lessons.denoiser_loss(
            Recorder(rule), c.expand(256, 1, 8, 8), label, tiny(), step_generator(0, 0, 2), null=10
        )
        assert low <= float(loss) < high


@pytest.mark.equation("eq-v-loss")
def test_the_denoiser_loss_is_the_mean_square_error_of_v():
    """Recomputed from what the network saw: eps from x_t and x_0, alpha and sigma from the log-SNR."""
    x0, network = images(64), Recorder(lambda x, log_snr, label: 0.3 * x + 0.1)
    generator = step_generator(5, 0, 2)
    loss = lessons.denoiser_loss(network, x0, torch.zeros(64, dtype=torch.long), tiny(), generator, null=10)
    x, log_snr, _ = network.calls[0]
    alpha, sigma = levels(log_snr, x)
    eps = (x - alpha * x0) / sigma
    expected = (0.3 * x + 0.1 - (alpha * eps - sigma * x0)).square().mean()
    assert abs(float(loss) - float(expected)) < 1e-4
    assert float(expected) > 0.1 and looks_normal(eps)


def test_the_times_of_a_batch_are_stratified_over_the_whole_schedule():
    """Sorted, the times of a batch are exactly 1 / batch apart; over the steps they are uniform."""
    classes = Recorder(lambda x, *_: x.new_zeros(len(x), 10))
    for task, loss_of, network in (
        ("denoiser", lessons.denoiser_loss, Recorder()),
        ("guide", lessons.guide_loss, classes),
    ):
        first = []
        for step in range(200):
            label, generator = torch.zeros(8, dtype=torch.long), step_generator(0, step, 2)
            loss_of(network, images(8), label, tiny(task), generator, null=10)
            log_snr = network.calls[-1][1].double()
            start, end = math.atan(math.exp(-10)), math.atan(math.exp(10))
            t = (torch.atan(torch.exp(-log_snr / 2)) - start) / (end - start)  # the angle is linear in time
            assert float((t.sort().values.diff() - 1 / 8).abs().max()) < 1e-4
            first.append(float(t[0]))
        # Kolmogorov-Smirnov at the level 1e-3, n = 200: the gap to the uniform is below 1.95 / sqrt(n)
        gap = (torch.tensor(first).sort().values - (torch.arange(200) + 0.5) / 200).abs().max()
        assert float(gap) < 1.95 / math.sqrt(200)


@pytest.mark.parametrize("task", ["denoiser", "guide"])
def test_the_schedule_of_the_recipe_is_the_one_trained_under(task):
    """The log-SNR that the network is told, inverted by the schedule's own formula, gives stratified times."""
    made = tiny(task, schedule="vp_linear", schedule_arguments=(("beta_max", 15.0),))
    loss_of = lessons.LOSSES[task]
    network = Recorder((lambda x, *_: x) if task == "denoiser" else (lambda x, *_: x.new_zeros(len(x), 10)))
    loss_of(network, images(8), torch.zeros(8, dtype=torch.long), made, step_generator(0, 0, 2), null=10)
    b = torch.nn.functional.softplus(-network.calls[0][1].double())  # the integral of beta = 0.1 + t (15 - 0.1)
    t = (torch.sqrt(0.1**2 + 2 * 14.9 * b) - 0.1) / 14.9
    assert float((t.sort().values.diff() - 1 / 8).abs().max()) < 1e-4


def test_a_checkpoint_says_what_the_network_was_trained_for(tmp_path):
    made = tiny("guide", steps=1, schedule="vp_linear", schedule_arguments=(("beta_max", 15.0),))
    path = run(tmp_path, made)
    assert checkpoints.load_tensors(path)[1] == {
        "network": "DigitClassifier",
        "arguments": {"widths": [8, 16], "embedding": 16},
        "prediction": "logits",
        "schedule": "vp_linear",
        "schedule_arguments": {"beta_min": 0.1, "beta_max": 15.0},
        "data": "embedded",
        "size": 8,
        "recipe": json.loads(json.dumps(asdict(made))),
    }
    assert checkpoints.load(path).network.size == 8


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1.0])
def test_label_dropout_hides_its_share_of_the_labels_and_changes_no_other(dropout):
    made, network, label = tiny(label_dropout=dropout), Recorder(), torch.arange(500) % 10
    for step in range(40):
        lessons.denoiser_loss(network, images(500), label, made, step_generator(0, step, 2), null=10)
    seen = torch.stack([call[2] for call in network.calls])  # (40, 500)
    hidden = seen == 10
    assert torch.equal(seen[~hidden], label.expand(40, 500)[~hidden])
    share = float(hidden.double().mean())
    assert abs(share - dropout) <= 4 * math.sqrt(dropout * (1 - dropout) / 20_000)  # 4 sigma, n = 20,000
    assert label.max() == 9  # the caller's labels are untouched


def test_the_guide_is_trained_on_noisy_images_and_told_their_noise_level():
    x0, label = images(32), torch.arange(32) % 10

    def rule(x, log_snr, _):
        return torch.stack([(k + 1) * x.mean(dim=(1, 2, 3)) for k in range(10)], dim=1)

    network = Recorder(rule)
    loss = lessons.guide_loss(network, x0, label, tiny("guide"), step_generator(0, 0, 2), null=10)
    x, log_snr, _ = network.calls[0]
    alpha, sigma = levels(log_snr, x)
    eps = (x - alpha * x0) / sigma
    assert looks_normal(eps)
    log_prob = torch.distributions.Categorical(logits=rule(x, log_snr, None)).log_prob(label)
    assert abs(float(loss) + float(log_prob.mean())) < 1e-5


def test_the_judge_is_trained_on_clean_images_shifted_by_whole_pixels():
    x0, label = images(4), torch.arange(4)

    def rule(x, log_snr, _):
        return x.flatten(1)[:, :10]

    network, seen = Recorder(rule), set()
    for step in range(150):
        made, generator = tiny("judge", shift=1), step_generator(0, step, 2)
        loss = lessons.judge_loss(network, x0, label, made, generator, null=10)
        x, log_snr, _ = network.calls[-1]
        assert log_snr is None
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if torch.equal(x, x0.roll((i, j), (2, 3)))]
        assert len(shifts) == 1
        log_prob = torch.distributions.Categorical(logits=rule(x, None, None)).log_prob(label)
        assert abs(float(loss) + float(log_prob.mean())) < 1e-6
        seen.add(shifts[0])
    assert len(seen) == 9
    lessons.judge_loss(network, x0, label, tiny("judge", shift=0), step_generator(0, 0, 2), 10)
    assert torch.equal(network.calls[-1][0], x0)


# ---- it learns, and says what it did


@pytest.mark.parametrize("task, below", [("denoiser", 0.9), ("judge", 0.8), ("guide", 0.95)])
def test_the_loss_goes_down_on_the_embedded_digits(tmp_path, task, below):
    path = run(tmp_path, tiny(task, steps=60, batch=32, learning_rate=1e-2, warmup=5, shift=0), save_every=10)
    losses = dict(card(path)["loss"])
    assert list(losses) == [10, 20, 30, 40, 50, 60]
    assert losses[60] < below * losses[10]


def test_a_card_says_what_was_done(tmp_path):
    made = tiny(steps=5, seed=4)
    path = run(tmp_path, made)
    written = card(path)
    assert path == tmp_path / "denoiser.safetensors" and written["task"] == "denoiser"
    assert written["recipe"] == json.loads(json.dumps(asdict(made))) and written["recipe"]["seed"] == 4
    assert written["data_sha256"] == data.data_hash("embedded") != data.data_hash("mnist")
    words = written["command"].split()
    assert words[:3] == ["difflesson", "train", "denoiser"] and str(tmp_path) not in written["command"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--data"] == "embedded" and given["--steps"] == "5" and given["--seed"] == "4"
    assert "--learning-rate" not in given or float(given["--learning-rate"]) == made.learning_rate
    assert written["parameters"] == sum(p.numel() for p in checkpoints.load(path).network.parameters())
    assert written["difflesson"] == difflesson.__version__ and written["torch"] == torch.__version__
    assert (written["device"], written["precision"], written["metrics"]) == ("cpu", "no", {})
    assert written["processes"] == 1
    assert written["loss"][-1][0] == 5 and 0.1 < written["loss"][-1][1] < 10 and written["seconds"] >= 0


# ---- what is refused


@pytest.mark.parametrize(
    "change",
    [
        {"task": "artist"},
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"warmup": -1},
        {"weight_decay": -0.1},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"label_dropout": 1.1},
        {"label_dropout": math.nan},
        {"shift": -1},
        {"data": "imagenet"},
        {"schedule": "sigmoid"},
        {"weighting": "heavy"},
        {"name": "../mine"},
    ],
    ids=str,
)
def test_a_wrong_recipe_is_a_value_error_that_names_the_argument(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value!r}$"):
        recipe("denoiser", **change)


def test_wrong_arguments_of_a_schedule_and_a_prediction_nobody_samples_are_refused():
    with pytest.raises(ValueError, match=r"^schedule_arguments of 'cosine' must be .*'log_snr_max'.*, got .*beta"):
        recipe("denoiser", schedule_arguments=(("beta_max", 15.0),))
    with pytest.raises(ValueError, match=r"^log_snr_max must exceed log_snr_min"):
        recipe("guide", schedule_arguments=(("log_snr_max", -30.0),))
    with pytest.raises(ValueError, match=r"^prediction of a DigitUNet must be one of \['v', 'eps', 'x0'\], got 'u'$"):
        recipe("denoiser", prediction="u")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "fp16"}, '^precision must be "no" or "bf16", got \'fp16\'$'),
        ({"device": "abacus", "precision": "no"}, "^device must be .*, got 'abacus'$"),
        ({"device": "cuda:7", "precision": "no"}, "^device must be .*, got 'cuda:7'$"),
    ],
    ids=str,
)
def test_a_device_or_precision_that_is_not_there_is_refused(tmp_path, options, message):
    """Never another one in its place."""
    run(tmp_path / "first", tiny(steps=1))  # accelerate remembers a process's first device: let it be the CPU
    with pytest.raises(ValueError, match=message):
        train(tiny(), tmp_path / "refused", progress=False, **options)
    assert not (tmp_path / "refused").exists()


def test_without_accelerate_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[train\]' in the course's folder"):
        run(tmp_path, tiny())


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of .*embedded.*mnist.*, got 'imagenet'"):
        run(tmp_path, tiny(data="imagenet"))


# ---- several processes

# Each process: a whole run, a run that stops and is resumed, a batch that cannot be shared, a denoiser.
WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from difflesson.digits import lessons, recipes, training

folder, rank, seeds = Path(sys.argv[1]), sys.argv[2], []
made = recipes.recipe(
    "judge", data="embedded", steps=6, batch=16, warmup=2, shift=0, ema_decay=0.0, arguments=%r
)

def run(name, made):
    return training.train(made, folder / name, device="cpu", precision="no", progress=False, save_every=3)

def stop(made, step, original=training.learning_rate):
    if step == 4:
        raise KeyboardInterrupt
    return original(made, step)

run("whole", made)
original, training.learning_rate = training.learning_rate, stop
try:
    run("cut", made)
except KeyboardInterrupt:
    training.learning_rate = original
assert (folder / "cut" / "judge-state.safetensors").exists()
run("cut", made)
try:
    run("odd", replace(made, batch=15))
except ValueError as error:
    (folder / f"error-{rank}").write_text(str(error))

def watched(network, x0, label, made, generator, *rest, original=lessons.denoiser_loss):
    seeds.append([len(x0), generator.initial_seed()])
    return original(network, x0, label, made, generator, *rest)

lessons.LOSSES["denoiser"] = watched
run("denoiser", replace(made, task="denoiser", name="denoiser", steps=4, teacher="itself", label_dropout=0.5))
(folder / f"seeds-{rank}").write_text(json.dumps(seeds))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Gloo finds its peers reliably on Linux only")
def test_two_processes_train_as_one(tmp_path):
    """The judge without shifts draws no random numbers, so sharing its batch changes nothing but rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = []
    for rank in ("0", "1"):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", WORKER % (TINY,), tmp_path, rank]
        variables = environment(**ranks, **place)
        workers.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    try:
        errors = [worker.communicate(timeout=600)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors

    made = tiny("judge", steps=6, shift=0, ema_decay=0.0)
    alone = run(tmp_path / "alone", made, save_every=3)
    whole, cut = (tmp_path / name / "judge.safetensors" for name in ("whole", "cut"))
    # Answers, not weights: where a gradient is zero, Adam takes full steps on its rounding errors.
    x = data.to_unit(data.load("embedded", "test").images)
    one, two = (checkpoints.load(path).network(x) for path in (alone, whole))
    before = training.build(made)(x).detach()
    assert float((one - two).abs().max()) < 1e-3 and float((one - before).abs().max()) > 0.1
    assert worst(weights(whole), weights(cut)) == 0
    for rank in "01":
        error = (tmp_path / f"error-{rank}").read_text()
        assert error == "batch must be a multiple of the 2 processes, got 15"
    denoiser = weights(tmp_path / "denoiser" / "denoiser.safetensors")
    assert all(bool(w.isfinite().all()) for w in denoiser.values())
    assert card(whole)["recipe"]["batch"] == 16 and card(whole)["processes"] == 2
    shares = [json.loads((tmp_path / f"seeds-{rank}").read_text()) for rank in "01"]
    assert {size for share in shares for size, _ in share} == {8}  # half the batch each
    assert len({seed for share in shares for _, seed in share}) == 8  # other noise in each process and step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_training_runs_in_bf16_and_ends_in_finite_weights(tmp_path):
    command = [sys.executable, "-m", "difflesson", "train", "denoiser", "--data", "embedded", "--steps", "20"]
    subprocess.run([*command, "--device", "cuda", "--folder", tmp_path], check=True, env=environment())
    path = tmp_path / "denoiser.safetensors"
    assert (card(path)["device"], card(path)["precision"]) == ("cuda", "bf16")
    assert all(bool(w.isfinite().all()) for w in weights(path).values())
    assert checkpoints.load(path, "cuda").network(
        torch.zeros(2, 1, 8, 8, device="cuda"),
        torch.zeros(2, device="cuda"),
        torch.tensor([1, 10], device="cuda"),
    ).isfinite().all()
