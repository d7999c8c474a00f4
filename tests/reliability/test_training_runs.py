"""Training runs: none is overwritten by mistake, none succeeds with nonsense, none finishes from half a state."""

import io
import json
import math
import re
import sys

import pytest
import torch

from difflesson import plane
from difflesson.digits import checkpoints, states, training
from difflesson.schedule import cosine


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def interrupt(monkeypatch, run, folder, made, at: int = 5, **options):
    """A run that stops at the beginning of a step, as by Ctrl-C; answers the path of its state."""

    def stop(recipe, step, original=training.learning_rate):
        if step == at:
            raise KeyboardInterrupt
        return original(recipe, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "learning_rate", stop)
        run(folder, made, save_every=2, **options)
    return folder / f"{made.task}-state.safetensors"


# ---- a finished run


@pytest.mark.parametrize("change", [{}, {"seed": 1}, {"learning_rate": 1e-3}], ids=str)
def test_a_finished_network_is_not_overwritten_by_the_same_or_another_recipe(tmp_path, run, tiny, change):
    path = run(tmp_path, tiny())
    before = contents(tmp_path)
    says = rf"^folder holds a finished network \({re.escape(str(path))}\); choose another, or use force"
    with pytest.raises(ValueError, match=says):
        run(tmp_path, tiny(**change))
    assert contents(tmp_path) == before
    run(tmp_path, tiny(**change), force=True)
    assert (contents(tmp_path)[path.name] == before[path.name]) == (change == {})


def test_on_the_command_line_force_overwrites_a_finished_network(difflesson):
    arguments = ("train", "judge", "--data", "embedded", "--steps", 1, "--batch", 2, "--device", "cpu")
    assert difflesson(*arguments).code == 0
    again = difflesson(*arguments)
    assert again.code == 2 and re.fullmatch(r"error: folder holds a finished network .*--force.*\n", again.err)
    assert difflesson(*arguments, "--force").code == 0


def test_a_forced_run_that_is_interrupted_goes_on_and_until_its_end_the_old_network_stays(
    tmp_path, monkeypatch, run, tiny
):
    path = run(tmp_path / "a", tiny())
    before = path.read_bytes()
    interrupt(monkeypatch, run, tmp_path / "a", tiny(seed=1), force=True)
    assert path.read_bytes() == before
    run(tmp_path / "a", tiny(seed=1))
    assert path.read_bytes() == run(tmp_path / "b", tiny(seed=1)).read_bytes() != before


def test_a_run_killed_between_its_checkpoint_and_its_card_writes_both_when_started_again(
    tmp_path, monkeypatch, run, tiny
):
    whole = run(tmp_path / "whole", tiny(), save_every=2)

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write_card", kill)
        run(tmp_path / "cut", tiny(), save_every=2)
    path = run(tmp_path / "cut", tiny(), save_every=2)
    assert path.read_bytes() == whole.read_bytes() and path.with_suffix(".json").exists()
    assert sorted(contents(path.parent)) == ["denoiser.json", "denoiser.safetensors"]


# ---- what killed and failed saves leave


def test_what_killed_saves_left_is_cleared_away_at_the_next_start(tmp_path, run, tiny):
    """26 MB each; what belongs to another task or to nobody stays."""
    left = ["denoiser-state.safetensors.17.tmp", "denoiser.safetensors.4.tmp", "denoiser.json.99.tmp"]
    kept = ["judge.safetensors.4.tmp", "notes.tmp", "denoiser.safetensors.bak"]
    for name in [*left, *kept]:
        (tmp_path / name).write_bytes(b"half")
    run(tmp_path, tiny(steps=1))
    assert sorted(contents(tmp_path)) == sorted([*kept, "denoiser.json", "denoiser.safetensors"])


# ---- a full disk


def test_a_disk_without_room_for_the_states_is_noticed_before_the_work(tmp_path, monkeypatch, run, tiny, full_disk):
    def work(*arguments):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(training, "_take_step", work)
    state = tmp_path / "new" / "denoiser-state.safetensors"
    says = f"^{re.escape(str(state))} cannot be written: File too large$"
    with full_disk(50_000), pytest.raises(OSError, match=says):
        run(tmp_path / "new", tiny())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_in_the_middle_costs_only_the_steps_since_the_last_state(
    tmp_path, monkeypatch, run, tiny, full_disk
):
    made, whole, saves = tiny(), run(tmp_path / "whole", tiny(), save_every=2), []

    def store(*arguments, original=states.store):
        saves.append(arguments)
        if len(saves) == 1:
            return original(*arguments)
        with full_disk(50_000):
            return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(states, "store", store)
        with pytest.raises(OSError, match="denoiser-state.safetensors cannot be written: .*File too large"):
            run(tmp_path / "cut", made, save_every=2)
    assert list(contents(tmp_path / "cut")) == ["denoiser-state.safetensors"]  # and nothing half
    assert checkpoints.load_tensors(tmp_path / "cut" / "denoiser-state.safetensors")[1]["step"] == 2
    assert run(tmp_path / "cut", made, save_every=2).read_bytes() == whole.read_bytes()


# ---- a state that is not whole


@pytest.fixture(scope="module")
def whole_state(tmp_path_factory, run, tiny) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        return interrupt(patch, run, tmp_path_factory.mktemp("state"), tiny()).read_bytes()


@pytest.fixture
def state(tmp_path, whole_state):
    """The state of an interrupted run of `tiny()`, at step 4."""
    path = tmp_path / "denoiser-state.safetensors"
    path.write_bytes(whole_state)
    return path


def change_step(tensors, metadata, step):
    metadata["step"] = step


def drop_optimiser(tensors, metadata, prefix):
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]


def break_weight(tensors, metadata, name):
    tensors[name].view(-1)[0] = math.nan


def drop_field(tensors, metadata, name):
    del metadata[name]


@pytest.mark.parametrize(
    "change, value, says",
    [
        *((change_step, step, rf"step must be in 1\.\.7, got {step}") for step in (8, 9, 0, -1)),
        (change_step, "4", ".*not supported between.*"),
        (drop_optimiser, "optimizer.", "the optimiser's tensors are not those of this network"),
        (drop_optimiser, "optimizer.3.exp_avg", "the optimiser's tensors are not those of this network"),
        (drop_optimiser, "network.", ".*Missing key.*"),
        (drop_optimiser, "average.module.enter", ".*Missing key.*"),
        (break_weight, "network.enter.weight", "network.enter.weight has NaN or infinity in it"),
        (break_weight, "optimizer.0.exp_avg_sq", "optimizer.0.exp_avg_sq has NaN or infinity in it"),
        (drop_field, "losses", "'losses'"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:24]),
)
def test_a_state_that_is_not_whole_does_not_finish(tmp_path, state, run, tiny, change, value, says):
    tensors, metadata = checkpoints.load_tensors(state)
    change(tensors, metadata, value)
    checkpoints.save_tensors(state, tensors, metadata)
    before = contents(tmp_path)
    message = rf"(?s)^state {re.escape(str(state))} is not whole: {says}; move it away or choose another folder$"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tiny())
    assert contents(tmp_path) == before


def test_a_state_that_does_not_say_its_setting_is_refused(tmp_path, state, run, tiny):
    tensors, metadata = checkpoints.load_tensors(state)
    checkpoints.save_tensors(state, tensors, {k: v for k, v in metadata.items() if k != "setting"})
    with pytest.raises(ValueError, match="^device must be None to go on from .*, got 'cpu'"):
        run(tmp_path, tiny())


def test_the_card_of_a_run_resumed_under_another_torch_names_both(tmp_path, state, run, tiny):
    tensors, metadata = checkpoints.load_tensors(state)
    assert metadata["torch"] == [torch.__version__]
    checkpoints.save_tensors(state, tensors, metadata | {"torch": ["1.0"]})
    card = json.loads(run(tmp_path, tiny()).with_suffix(".json").read_text(encoding="utf-8"))
    assert card["torch"] == f"1.0, then {torch.__version__}"


# ---- what a run says


class Terminal(io.StringIO):
    def isatty(self):
        return True


LINE = r"denoiser: step (\d+) of 8, loss \d\.\d{4}, \S+ steps/s, (\d+\.\d min left|done)"


def test_without_a_terminal_a_run_says_how_far_how_fast_and_how_long(tmp_path, monkeypatch, run, tiny):
    for every, said in ((0.0, ["2", "4", "6", "8"]), (60.0, ["2", "8"])):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr(training.Shown, "every", every)
        run(tmp_path / str(every), tiny(), save_every=2, progress=True)
        lines = sys.stderr.getvalue().splitlines()
        assert [re.fullmatch(LINE, line)[1] for line in lines] == said and lines[-1].endswith("done")


def test_on_a_terminal_it_shows_its_bar_and_without_progress_nothing(tmp_path, monkeypatch, run, tiny):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(tmp_path / "bar", tiny(), progress=True)
    assert "8/8" in sys.stderr.getvalue() and "steps/s" not in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(tmp_path / "silent", tiny())
    assert sys.stderr.getvalue() == ""


def test_rate_and_time_left_count_the_steps_of_this_start_alone(monkeypatch, tiny, capsys):
    """Resumed at step 200 of 1000, 100 steps in 50 s: 2 a second, and 700 / 2 s = 5.8 min left."""
    shown = training.Shown(tiny(steps=1000), 200, True)
    monkeypatch.setattr(training.time, "monotonic", lambda: shown.began + 50.0)
    shown.say(300, 0.5)
    assert capsys.readouterr().err == "denoiser: step 300 of 1000, loss 0.5000, 2 steps/s, 5.8 min left\n"


# ---- a run in the plane that diverges


@pytest.mark.parametrize("rate", [1e4, 1e9, 1e30])
def test_training_in_the_plane_stops_at_the_first_loss_that_is_not_finite(rate):
    with pytest.raises(FloatingPointError, match=r"^training diverged in step \d+ of 20, .* a learning_rate below"):
        plane.train(plane.four_blobs(), cosine(), steps=20, batch=32, width=8, learning_rate=rate)


def test_weights_in_the_plane_that_went_astray_in_the_last_step_are_noticed_too(monkeypatch):
    def go_astray(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", go_astray)
    with pytest.raises(FloatingPointError, match="^training diverged in step 1 of 1"):
        plane.train(plane.four_blobs(), cosine(), steps=1, batch=4, width=8)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf, 1e300], ids=str)
def test_a_learning_rate_that_single_precision_has_no_positive_number_for_is_refused(tiny, rate):
    says = rf"^learning_rate must be positive and at most 3.4e\+?38, got {re.escape(str(rate))}$"
    with pytest.raises(ValueError, match=says):
        plane.train(plane.four_blobs(), cosine(), steps=1, learning_rate=rate)
    with pytest.raises(ValueError, match=says):
        tiny(learning_rate=rate)


def test_a_variable_that_would_scale_the_loss_unsaid_is_refused(tmp_path, monkeypatch, run, tiny):
    """accelerate reads it in silence and divides each loss by it; the card would not say so."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="^ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be 1, .*, got 4$"):
        run(tmp_path, tiny())
