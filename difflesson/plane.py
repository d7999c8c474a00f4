"""The laboratory in the plane: the mixture of the chapters, and a small network that learns it in seconds."""

import math

import torch
from torch import Tensor, nn

from difflesson.checks import check_shape
from difflesson.losses import v_loss
from difflesson.mixture import GaussianMixture
from difflesson.schedule import Schedule


def four_blobs() -> GaussianMixture:
    """The mixture of the chapters, in float64: four blobs with full covariances, the left two class 0, the others 1."""
    return GaussianMixture(
        weights=[0.30, 0.30, 0.25, 0.15],
        means=torch.tensor([[-2.0, -0.5], [-0.2, 1.4], [0.4, -0.6], [2.4, 1.0]], dtype=torch.float64),
        covs=[
            [[0.5, 0.2], [0.2, 0.4]],
            [[0.4, -0.2], [-0.2, 0.3]],
            [[0.4, 0.1], [0.1, 0.5]],
            [[0.3, -0.1], [-0.1, 0.3]],
        ],
        labels=[0, 0, 1, 1],
    )


class PlaneNetwork(nn.Module):
    """A class-conditional v-predictor for points in the plane, with a null label.

    `network(x, log_snr, label) -> v`, like the digit network: label `classes` is the null label. Its embedding is one
    row more in the table of labels, learned like any other row. The noise level enters as sines and cosines of the
    angle `atan(sigma / alpha)`, in which the schedule of the paper is a straight line.

    Args: classes: number of labels, at least 1;  width: of the hidden layers;  depth: number of hidden layers.
    Raises: ValueError if one of them is less than 1.
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 3):
        super().__init__()
        for name, value in (("classes", classes), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width)
        self.register_buffer("frequency", torch.arange(1.0, 5.0), persistent=False)
        self.enter = nn.Linear(2 + 2 * len(self.frequency), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """x: (batch, 2), log_snr: (batch,), label: (batch,) in 0..classes  ->  v: (batch, 2)."""
        x, log_snr = x.to(self.frequency), log_snr.to(self.frequency)
        angle = torch.atan(torch.exp(-log_snr / 2))[:, None] * self.frequency  # (batch, 4)
        h = self.enter(torch.cat([x, angle.sin(), angle.cos()], dim=1)) + self.label(label)  # (batch, width)
        for layer in self.hidden:
            h = h + layer(nn.functional.silu(h))
        return self.leave(nn.functional.silu(h))


def train(
    mixture: GaussianMixture,
    schedule: Schedule,
    label_dropout: float = 0.2,
    steps: int = 3000,
    batch: int = 1024,
    width: int = 64,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> PlaneNetwork:
    """Train a `PlaneNetwork` on fresh samples of a mixture with `v_loss`: Adam, the rate falling along a cosine to 0.

    Args: mixture: in the plane;  label_dropout: in [0, 1];  steps, batch, width: at least 1;  seed: decides all
    randomness; the global generator is left as it was.  Returns: the network, in float64, frozen.
    Raises: ValueError if an argument is out of range or the mixture is not in the plane;  FloatingPointError at the
    first loss that is not finite, or if the weights after the last step are not.
    """
    if mixture.dim != 2:
        raise ValueError(f"mixture must be in the plane (2 dimensions), got {mixture.dim}")
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < learning_rate <= 3.4e38:
        raise ValueError(f"learning_rate must be positive and at most 3.4e38, got {learning_rate}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators as well
        network = PlaneNetwork(mixture.classes, width)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        x0, label = mixture.sample(batch, generator)
        loss = v_loss(network, schedule, x0.float(), label, label_dropout, generator, network.classes)
        if not math.isfinite(float(loss.detach())):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not all(bool(p.isfinite().all()) for p in (loss, *network.parameters())):
        raise FloatingPointError(
            f"training diverged in step {step + 1} of {steps}, the loss or a weight is not finite; "
            f"take a learning_rate below {learning_rate:g}"
        )
    return network.double().requires_grad_(False).eval()


def jacobian(field, x: Tensor) -> Tensor:
    """Derivatives of a vector field: `J[n, i, j] = d field_i / d x_j` at point n, (N, d, d).

    Args: field: (N, d) -> (N, d), each value depending on its own point alone;  x: (N, d).  A field that is the same
    at all points has zeros.  Raises: ValueError on other shapes.
    """
    if x.dim() != 2:
        raise ValueError(f"x must have shape (N, d), got {tuple(x.shape)}")
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = field(leaf)
        check_shape("field's answer", values, x.shape)
        if not values.requires_grad:
            return x.new_zeros(*x.shape, x.shape[1])
        rows = [torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0] for part in values.unbind(dim=1)]
    return torch.stack(rows, dim=1)


def curl(field, x: Tensor) -> Tensor:
    """How much a vector field in the plane turns: zero everywhere if and only if it is a gradient.  [eq-curl]

        curl f = d f_2 / d x_1 - d f_1 / d x_2

    Args: field: (N, 2) -> (N, 2), each value depending on its own point alone;  x: (N, 2).  Returns: (N,).
    Raises: ValueError if the points are not in the plane.
    """
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape (N, 2), got {tuple(x.shape)}")
    slopes = jacobian(field, x)
    return slopes[:, 1, 0] - slopes[:, 0, 1]
