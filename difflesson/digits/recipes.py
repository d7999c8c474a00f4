"""Recipes: everything that decides the outcome of a training run, and those of the networks that ship."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from difflesson.digits import data
from difflesson.digits.blueprint import Blueprint, make_schedule, usual_arguments
from difflesson.losses import WEIGHTINGS
from difflesson.schedule import Schedule

LARGEST = 3.4e38  # in single precision, in which optimisers work
OPTIONS = (  # the fields that `difflesson train` has options for
    "data", "steps", "batch", "learning_rate", "seed", "label_dropout", "ema_decay", "schedule", "prediction",
    "weighting", "start", "teacher",
)  # fmt: skip
WHOLE = {"steps": 1, "batch": 1, "warmup": 0, "shift": 0, "seed": 0}  # fields that are integers: the least
NUMBERS = ("learning_rate", "weight_decay", "ema_decay", "label_dropout")
CHECKPOINT = re.compile("[a-z0-9_]*")  # what a checkpoint may be called: on every system the name of a file


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run.

    task: "denoiser" (at all noise levels, with label dropout), "judge" (classifier of clean digits) or "guide"
    (classifier at all noise levels); with sentences for labels (`captions`), "words" (a denoiser), "towers" (two
    encoders, of clean digits) or "noisy_towers" (at all noise levels).  name: of its checkpoint, by default the task.
    data: a name in `data.DATASETS`; meanings are measured in pixels of MNIST, so that of the 8x8 digits nearly all
    are thin and narrow, enough to try a task of sentences out.  batch: over all processes together.
    label_dropout: probability of the null label in [0, 1], denoisers only.  ema_decay in [0, 1).
    shift: augmentation of the judge, whole pixels.  arguments: of the network's constructor.
    schedule: a name in `blueprint.SCHEDULES`, for all but the judge, which sees no noise;  schedule_arguments: those
    that differ from the ones listed there.  prediction: what a denoiser outputs, "v", "eps" or "x0", and
    is trained in;  weighting: "plain" or "min_snr", see `losses.denoising_loss`.
    start: the checkpoint whose weights the run begins with, "" for fresh ones.  teacher: whose answers a denoiser
    learns (see there as well): "" nobody's, the target is what was drawn;  "itself", where the label is
    hidden, those that its own running average gives when it is told the label;  a checkpoint's name, those of this
    one, in every row.  Both are looked for in the folder of the run, and then among the shipped ones.
    Raises: ValueError that names the field and what is allowed.
    """

    task: str
    data: str = "mnist"
    steps: int = 18_000
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    shift: int = 0
    seed: int = 0
    arguments: tuple[tuple[str, Any], ...] = ()
    schedule: str = "cosine"
    schedule_arguments: tuple[tuple[str, float], ...] = ()
    prediction: str = "v"
    start: str = ""
    teacher: str = ""
    weighting: str = "plain"
    name: str = ""

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.task)
        for name, least in WHOLE.items():
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in NUMBERS:
            if not isinstance(value := getattr(self, name), int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        allowed = {
            "task": (self.task in TASKS, f"one of {sorted(TASKS)}"),
            "data": (self.data in data.DATASETS, f"one of {sorted(data.DATASETS)}"),
            "learning_rate": (0 < self.learning_rate <= LARGEST, f"positive and at most {LARGEST:g}"),
            "weight_decay": (0 <= self.weight_decay <= LARGEST, f"in [0, {LARGEST:g}]"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "label_dropout": (0 <= self.label_dropout <= 1, "in [0, 1]"),
            "name": (CHECKPOINT.fullmatch(str(self.name)), "small letters, digits and underscores"),
            "weighting": (self.weighting in WEIGHTINGS, f"one of {list(WEIGHTINGS)}"),
            "start": (CHECKPOINT.fullmatch(str(self.start)), "the name of a checkpoint, or empty"),
            "teacher": (CHECKPOINT.fullmatch(str(self.teacher)), '"itself", a checkpoint, or empty'),
        }
        for name, (fine, what) in allowed.items():
            if not fine:
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}")
        if self.teacher and self.task != "denoiser":
            raise ValueError(f"teacher must be empty for a {self.task}, only a denoiser has one, got {self.teacher!r}")
        for name in () if self.task in ("denoiser", "words") else ("label_dropout", "prediction", "weighting"):
            if (value := getattr(self, name)) != (usual := getattr(Recipe, name)):
                raise ValueError(f"{name} must be {usual!r} for {self.task}, only denoisers have one, got {value!r}")
        _ = self.blueprint  # raises as well

    @cached_property
    def blueprint(self) -> Blueprint:
        """What the checkpoint will say of the network, so that nobody need know the recipe to use it."""
        network, prediction = TASKS[self.task]
        return Blueprint(
            network=network,
            arguments=dict(self.arguments),
            prediction=prediction or self.prediction,
            schedule=self.schedule,
            schedule_arguments=usual_arguments(self.schedule) | dict(self.schedule_arguments),
            data=self.data,
            size=data.DATASETS[self.data].size,
        )

    @cached_property
    def noise(self) -> Schedule:
        """The noise schedule to train under."""
        return make_schedule(self.blueprint.schedule, self.blueprint.schedule_arguments)


TASKS = {  # name: (its network, what that outputs where the recipe does not say so)
    "denoiser": ("DigitUNet", ""),
    "judge": ("DigitClassifier", "logits"),
    "guide": ("DigitClassifier", "logits"),
    "words": ("WordsUNet", ""),
    "towers": ("Towers", "cosine"),
    "noisy_towers": ("Towers", "cosine"),
}
OF_SENTENCES = ("words", "towers", "noisy_towers")
POCKET = {"task": "denoiser", "arguments": (("widths", (16, 48)),), "batch": 64}
TOWERS = {"steps": 1_000, "batch": 128, "ema_decay": 0.99, "warmup": 50, "weight_decay": 0.05}
RECIPES = {  # of the networks that ship
    "denoiser": {"task": "denoiser"},
    "unlabelled": {"task": "denoiser", "start": "denoiser", "teacher": "denoiser", "label_dropout": 1.0}
    | {"steps": 6_500, "learning_rate": 1e-3, "warmup": 100, "ema_decay": 0.998},
    "pocket": POCKET | {"teacher": "denoiser", "label_dropout": 0.2, "steps": 8_000},
    "pocket_p02": POCKET | {"label_dropout": 0.02, "steps": 4_000},
    "pocket_p10": POCKET | {"label_dropout": 0.1, "steps": 4_000},
    "pocket_p50": POCKET | {"label_dropout": 0.5, "steps": 4_000},
    "judge": {"task": "judge", "steps": 4_700, "ema_decay": 0.998, "shift": 2, "weight_decay": 0.05},
    "guide": {"task": "guide", "steps": 4_000, "ema_decay": 0.998, "weight_decay": 0.05},
    "clean": {"task": "judge", "arguments": (("widths", (24, 48)),), "steps": 2_500, "ema_decay": 0.998, "seed": 1},
    "words": POCKET
    | {"task": "words", "start": "pocket", "label_dropout": 0.0, "steps": 1_500, "warmup": 100, "ema_decay": 0.99},
    "towers": TOWERS | {"task": "towers"},
    "noisy_towers": TOWERS | {"task": "noisy_towers", "start": "towers"},
    "other_towers": TOWERS | {"task": "towers", "seed": 1},
}


def recipe(name: str, /, **changes) -> Recipe:
    """The recipe of this name, with changes.  Raises: ValueError if there is none, or a value is not allowed."""
    if name not in RECIPES:
        raise ValueError(f"name must be one of {sorted(RECIPES)}, got {name!r}")
    return Recipe(**{"name": name} | RECIPES[name] | changes)
