"""One look for every figure of the book."""

from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

COLOURS = {
    "unconditional": "#7f7f7f",
    "conditional": "#0072b2",
    "guided": "#d55e00",
    "truth": "#000000",
    "other": "#009e73",
}
"""Okabe & Ito's colour-blind-safe palette; every colour has one meaning throughout the book."""

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 120,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[COLOURS[k] for k in ("conditional", "guided", "other", "unconditional")]),
    "legend.frameon": False,
    "image.cmap": "gray_r",
    "svg.hashsalt": "difflesson",
}


@contextmanager
def style():
    """The book's look for the figures made inside the `with` block."""
    with plt.rc_context(STYLE):
        yield


def save(figure: Figure, name: str, folder: Path | str) -> Path:
    """Write a figure as `folder/name.png`, without a date so that the same figure gives the same file."""
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_png(figure))
    return path


def show(figure: Figure, name: str, alt: str):
    """A figure for display, as the last value of a notebook cell. Nothing is written: the build of the course takes the
    picture out of the cell and makes it figures/`name`.png.

    Args: alt: what the picture shows, for readers who cannot see it.  Raises: ValueError if alt is empty.
    """
    from IPython.display import Image as shown

    if not alt.strip():
        raise ValueError("alt must say what the figure shows, it is empty")
    return shown(data=as_png(figure), format="png", alt=alt, metadata={"figure": name})


def as_png(figure: Figure) -> bytes:
    """The picture as a file has it, without a date, in the 256 colours that suit it best: a third of the bytes, and no
    difference to be seen. The figure is closed.
    """
    buffer, small = BytesIO(), BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    with Image.open(buffer) as picture:
        few = picture.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
        few.save(small, format="png", optimize=True, dpi=picture.info["dpi"])
    return small.getvalue()


def tile(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay images (N, 1, H, W) in [-1, 1] out row by row on one page: (rows (H + gap), columns (W + gap)) in [0, 1].

    Raises: ValueError if images have another shape or columns < 1.
    """
    if images.dim() != 4 or images.shape[1] != 1:
        raise ValueError(f"images must have shape (N, 1, H, W), got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    count, _, height, width = images.shape
    rows = -(-count // columns)
    page = torch.zeros(rows * columns, height + gap, width + gap)
    page[:count, :height, :width] = (images[:, 0].detach().cpu().float().clamp(-1, 1) + 1) / 2
    page = page.view(rows, columns, height + gap, width + gap).permute(0, 2, 1, 3)
    return page.reshape(rows * (height + gap), columns * (width + gap))[:-gap or None, : -gap or None]


def show_digits(axes: Axes, images: Tensor, columns: int, title: str = "") -> None:
    """Draw a sheet of digits, ink on paper, into `axes`."""
    axes.imshow(tile(images, columns).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)


def density(axes: Axes, log_prob, limits: tuple[float, float, float, float], **options) -> None:
    """Contours of a 2-D density, each enclosing a share of the mass: 50, 90 and 99 %.

    Args: log_prob: (N, 2) -> (N,), on float64;  limits: (x0, x1, y0, y1);  options: of `Axes.contour`.
    """
    x0, x1, y0, y1 = limits
    x, y = torch.linspace(x0, x1, 200, dtype=torch.float64), torch.linspace(y0, y1, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)
    p = log_prob(grid).exp()
    ranked = p.sort(descending=True).values
    mass = ranked.cumsum(0) / ranked.sum()
    levels = sorted(float(ranked[torch.searchsorted(mass, share)]) for share in (0.5, 0.9, 0.99))
    options = {"colors": COLOURS["truth"], "linestyles": "dashed", "linewidths": 1} | options
    axes.contour(x, y, p.view(200, 200).T, levels=levels, **options)
