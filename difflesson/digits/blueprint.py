"""What must be known to build a digit network again and to use it rightly. It travels inside the checkpoint.

Weights alone do not say to which noise level a time belongs, what the numbers that come out mean, or how large the
images were: a network that is read with another answer to one of these draws nonsense without a word.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from difflesson.denoiser import PREDICTIONS
from difflesson.digits.data import DATASETS
from difflesson.digits.networks import DigitClassifier, DigitUNet
from difflesson.digits.words import Towers, WordsUNet
from difflesson.schedule import Schedule, cosine, vp_linear

# name: (the function that makes it, the arguments it gets where a recipe does not say otherwise)
SCHEDULES = {
    "cosine": (cosine, {"log_snr_max": 20.0, "log_snr_min": -20.0}),
    "vp_linear": (vp_linear, {"beta_min": 0.1, "beta_max": 20.0}),
}
# name: (its class, what its output may mean)
NETWORKS = {
    "DigitUNet": (DigitUNet, tuple(PREDICTIONS)),
    "DigitClassifier": (DigitClassifier, ("logits",)),  # of the labels
    "WordsUNet": (WordsUNet, tuple(PREDICTIONS)),
    "Towers": (Towers, ("cosine",)),  # of a picture and a sentence
}


def usual_arguments(name: str) -> dict[str, float]:
    """A named schedule's arguments in the table.  Raises: ValueError if there is no schedule of this name."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {sorted(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name][1]


def make_schedule(name: str, arguments: dict[str, float]) -> Schedule:
    """The named schedule with these arguments, all of them: a default may change, what a network has learned does not.

    Raises: ValueError if there is no schedule of this name, or it does not take these arguments.
    """
    usual = usual_arguments(name)
    numbers = isinstance(arguments, dict) and all(isinstance(value, int | float) for value in arguments.values())
    if not numbers or arguments.keys() != usual.keys():
        raise ValueError(f"schedule_arguments of {name!r} must be numbers {sorted(usual)}, got {arguments!r}")
    return SCHEDULES[name][0](**arguments)


@dataclass(frozen=True)
class Blueprint:
    """A network and its meaning, in words and numbers that JSON can hold.

    network: a class's name in NETWORKS;  arguments: of its constructor;  prediction: what it outputs, "v", "eps",
    "x0", "logits" or "cosine";  schedule: a name in SCHEDULES;  schedule_arguments: all of its arguments;  data: a name
    in `data.DATASETS`;  size: side of the images, in pixels.  Raises: ValueError that names the field and what is
    allowed.
    """

    network: str
    arguments: dict[str, Any]
    prediction: str
    schedule: str
    schedule_arguments: dict[str, float]
    data: str
    size: int

    def __post_init__(self):
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {self.network!r}")
        if self.prediction not in (allowed := NETWORKS[self.network][1]):
            raise ValueError(f"prediction of a {self.network} must be one of {list(allowed)}, got {self.prediction!r}")
        make_schedule(self.schedule, self.schedule_arguments)
        if self.data not in DATASETS:
            raise ValueError(f"data must be one of {sorted(DATASETS)}, got {self.data!r}")
        if self.size != (size := DATASETS[self.data].size) or not isinstance(self.size, int):
            raise ValueError(f"size must be {size} for the data set {self.data!r}, got {self.size!r}")

    @classmethod
    def read(cls, metadata: dict[str, Any]) -> "Blueprint":
        """From what a checkpoint says; what it does not say counts as None.  Raises: ValueError as above."""
        return cls(**{field.name: metadata.get(field.name) for field in fields(cls)})

    def write(self) -> dict[str, Any]:
        """For a checkpoint to say."""
        return asdict(self)

    def build(self) -> nn.Module:
        """The network, with fresh weights; it carries its `schedule`, the `size` of its images and its `prediction`.

        Its weights are float32, whatever torch's default is.

        Raises: ValueError if its class does not take these arguments.
        """
        try:
            network = NETWORKS[self.network][0](**self.arguments).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"arguments must be those of {self.network}, got {self.arguments!r}: {error}") from error
        network.schedule, network.size = make_schedule(self.schedule, self.schedule_arguments), self.size
        network.prediction = self.prediction
        return network
