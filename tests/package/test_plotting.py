"""The look of the figures: sheets of digits, density contours, and the same bytes for the same figure."""

import base64
import io
import math

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from difflesson import plotting

matplotlib.use("Agg")


@pytest.fixture
def axes():
    figure, axes = plotting.plt.subplots()
    yield axes
    plotting.plt.close(figure)


# ---- sheets


@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("count, columns", [(6, 3), (5, 3), (1, 1), (2, 4), (7, 1)])
def test_images_stand_row_by_row_with_a_gap(count, columns, gap):
    """Every pixel by hand, on images that are not square and not a whole number of rows."""
    height, width = 3, 5
    images = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    page, rows = plotting.tile(images, columns, gap), math.ceil(count / columns)
    expected = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i in range(count):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        expected[top : top + height, left : left + width] = (images[i, 0] + 1) / 2
    assert page.shape == expected.shape and float((page - expected).abs().max()) < 1e-6


def test_values_beyond_black_and_white_are_clamped_and_gradients_dropped():
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 0.5]).reshape(1, 1, 2, 3).double().requires_grad_()
    page = plotting.tile(images, 1)
    assert page.flatten().tolist() == [0, 0, 0.5, 1, 1, 0.75] and not page.requires_grad


@pytest.mark.parametrize(
    "images, columns, argument",
    [
        (torch.zeros(4, 8, 8), 2, "images"),
        (torch.zeros(4, 3, 8, 8), 2, "images"),
        (torch.zeros(8, 8), 2, "images"),
        (torch.zeros(4, 1, 8, 8), 0, "columns"),
        (torch.zeros(4, 1, 8, 8), -1, "columns"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_argument(images, columns, argument):
    with pytest.raises(ValueError, match=f"^{argument} must"):
        plotting.tile(images, columns)


@pytest.mark.parametrize("styled", [True, False])
def test_a_sheet_is_dark_ink_on_white_paper_the_first_digit_top_left(styled):
    """Read from the rendered picture: the first image is all ink, the other three are paper."""
    images = torch.full((4, 1, 4, 4), -1.0)
    images[0] = 1.0
    with plotting.style() if styled else plotting.plt.rc_context():
        figure, axes = plotting.plt.subplots(figsize=(2, 2), dpi=50)
        axes.set_position([0, 0, 1, 1])
        plotting.show_digits(axes, images, columns=2)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        plotting.plt.close(figure)
    height, width = pixels.shape[:2]
    corner = {(i, j): pixels[i * height // 4, j * width // 4] for i in (1, 3) for j in (1, 3)}
    assert corner[1, 1].max() < 10
    assert min(corner[place].min() for place in ((1, 3), (3, 1), (3, 3))) > 245


# ---- densities


def test_the_contours_of_a_gaussian_enclose_half_90_and_99_percent(axes):
    """In two dimensions the share `m` lies within the ellipse of Mahalanobis radius `sqrt(-2 log(1 - m))`."""
    deviations, mean = torch.tensor([[0.5, 1.5], [1.0, -1.0]], dtype=torch.float64)

    def log_prob(points):
        assert points.dtype == torch.float64 and points.shape == (40_000, 2)
        return -(((points - mean) / deviations) ** 2).sum(1) / 2  # the constant does not matter

    plotting.density(axes, log_prob, (-2, 4, -9, 7))
    (contours,) = axes.collections
    for share, level in zip((0.99, 0.9, 0.5), contours.levels, strict=True):
        assert abs(math.sqrt(-2 * math.log(level)) - math.sqrt(-2 * math.log(1 - share))) < 0.02
    outer = np.concatenate(contours.allsegs[0])
    radius = math.sqrt(-2 * math.log(0.01))
    assert np.abs(outer.max(0) - (mean + radius * deviations).numpy()).max() < 0.05
    assert np.abs(outer.min(0) - (mean - radius * deviations).numpy()).max() < 0.05


def test_the_contours_are_the_dashed_black_of_truth_unless_told_otherwise(axes):
    def log_prob(points):
        return -points.square().sum(1) / 2

    plotting.density(axes, log_prob, (-4, 4, -4, 4))
    plotting.density(axes, log_prob, (-4, 4, -4, 4), colors=plotting.COLOURS["guided"], linestyles="solid")
    truth, guided = axes.collections
    assert [tuple(c) for c in truth.get_edgecolor()] == 3 * [matplotlib.colors.to_rgba("#000000")]
    assert [tuple(c) for c in guided.get_edgecolor()] == 3 * [matplotlib.colors.to_rgba("#d55e00")]
    assert all(dashes is not None for _, dashes in truth.get_linestyle())
    assert all(dashes is None for _, dashes in guided.get_linestyle())


# ---- style and files


def test_the_style_ends_with_its_block():
    before = dict(plotting.plt.rcParams)
    with plotting.style():
        assert plotting.plt.rcParams["image.cmap"] == "gray_r"
        first = plotting.plt.rcParams["axes.prop_cycle"].by_key()["color"][0]
        assert first == plotting.COLOURS["conditional"]
    assert dict(plotting.plt.rcParams) == before


def test_the_same_figure_gives_the_same_file(tmp_path):
    def draw(folder, title="eight"):
        with plotting.style():
            figure, axes = plotting.plt.subplots(figsize=(2, 2))
            plotting.show_digits(axes, torch.linspace(-1, 1, 48).reshape(3, 1, 4, 4), 2, title)
            path = plotting.save(figure, "sheet", folder)
            plotting.plt.close(figure)
        return path

    one, two, other = draw(tmp_path / "new" / "a"), draw(str(tmp_path / "b")), draw(tmp_path / "c", "nine")
    assert one == tmp_path / "new" / "a" / "sheet.png" and one.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert b"Software" not in one.read_bytes() and b"tIME" not in one.read_bytes()


def test_showing_a_figure_writes_nothing_and_carries_its_name_and_description(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure, axes = plotting.plt.subplots(figsize=(1, 1))
    axes.plot([0, 1], [0, 1])
    png, metadata = plotting.show(figure, "07_line", alt="a line that rises")._repr_png_()
    assert base64.b64decode(png)[:8] == b"\x89PNG\r\n\x1a\n"
    assert metadata == {"alt": "a line that rises", "figure": "07_line"}
    assert list(tmp_path.iterdir()) == [] and not plotting.plt.fignum_exists(figure.number)


def test_a_file_has_few_colours_and_shows_what_was_drawn():
    """Thousands of colours, in lines and dots over a colour map, against the picture that matplotlib writes."""
    figure, axes = plotting.plt.subplots(figsize=(3, 3), dpi=100)
    axes.imshow(np.random.default_rng(0).uniform(size=(8, 8)), cmap="viridis", interpolation="bilinear")
    axes.plot([0, 7], [0, 7], color=plotting.COLOURS["guided"])
    axes.plot(*np.random.default_rng(1).uniform(0, 7, (2, 300)), ".", color=plotting.COLOURS["conditional"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    drawn = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    small = plotting.as_png(figure)
    with Image.open(io.BytesIO(small)) as picture:
        shown, colours = np.asarray(picture.convert("RGB")).astype(int), picture.convert("RGB").getcolors()
        assert picture.info["dpi"] == pytest.approx((100, 100), abs=0.1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1500 and len(colours) <= 256
    assert np.abs(shown - drawn).mean() < 2 and (np.abs(shown - drawn).max(2) > 40).mean() < 1e-3
    assert len(small) < 0.6 * len(buffer.getvalue())


def test_a_shown_picture_is_the_one_that_is_saved(tmp_path):
    def draw():
        figure, axes = plotting.plt.subplots(figsize=(1, 1))
        axes.plot([0, 1], [0, 1])
        return figure

    shown = base64.b64decode(plotting.show(draw(), "07_line", alt="a line")._repr_png_()[0])
    assert shown == plotting.save(draw(), "line", tmp_path).read_bytes()


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_is_not_shown_without_a_description(alt):
    figure, _ = plotting.plt.subplots(figsize=(1, 1))
    with pytest.raises(ValueError, match="^alt must say what the figure shows, it is empty"):
        plotting.show(figure, "07_line", alt=alt)
    plotting.plt.close(figure)


def test_each_colour_is_the_one_that_captions_call_it():
    """Grey without a label, blue with it, orange guided, black for the truth, green for what else there is."""
    red, green, blue = ({name: int(code[k : k + 2], 16) for name, code in plotting.COLOURS.items()} for k in (1, 3, 5))
    assert red["unconditional"] == green["unconditional"] == blue["unconditional"] > 100
    assert red["truth"] == green["truth"] == blue["truth"] == 0
    assert blue["conditional"] > green["conditional"] > red["conditional"]
    assert red["guided"] > green["guided"] > blue["guided"]
    assert green["other"] > blue["other"] > red["other"]
    assert len(plotting.COLOURS) == 5
