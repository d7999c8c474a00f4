"""The thin data: masses, width and place of the two arcs."""

import math

import pytest
import torch

from difflesson.curves import two_arcs

F64 = torch.float64


@pytest.mark.parametrize(("mass", "width", "parts"), [(0.8, 0.03, 24), (0.3, 0.1, 9)])
def test_the_arcs_have_their_masses_and_lie_within_a_few_widths_of_two_circles(mass, width, parts):
    arcs = two_arcs(mass, width, parts)
    assert float((arcs.class_weights() - torch.tensor([mass, 1 - mass], dtype=F64)).abs().max()) < 1e-12
    assert arcs.means.dtype == F64 and len(arcs.weights) == parts + parts // 2
    x, label = arcs.sample(4000, torch.Generator().manual_seed(0))
    for y, centre, radius in ((0, (-0.1, -0.1), 1.7), (1, (0.6, -0.6), 0.8)):
        off = (x[label == y] - torch.tensor(centre, dtype=F64)).norm(dim=1) - radius
        sag = radius * (1 - math.cos(math.radians(220 / parts)))  # an ellipse is straight, the circle is not
        assert float(off.abs().median()) < width + sag and float(off.abs().max()) < 5 * width + 12 * sag


def test_the_weight_grows_along_an_arc_to_three_times_what_it_was():
    arcs = two_arcs()
    for y in (0, 1):
        weights = arcs.given(y).weights
        assert bool((weights.diff() > 0).all()) and abs(float(weights[-1] / weights[0]) - 3) < 1e-12


def test_the_ellipses_are_thin_and_lie_along_the_curve():
    arcs = two_arcs(width=0.02)
    assert float((arcs.variances[:, 0] - 0.0004).abs().max()) < 1e-12 and float(arcs.variances[:, 1].min()) > 0.005
    steps = arcs.given(0).means.diff(dim=0)
    long_axes = arcs.given(0).axes[:-1, :, 1]
    assert float(torch.cosine_similarity(steps, long_axes).abs().min()) > 0.99


@pytest.mark.parametrize("bad", [{"mass": 0.0}, {"mass": 1.0}, {"width": 0.0}, {"width": math.inf}, {"parts": 3}])
def test_what_is_no_arc_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        two_arcs(**bad)
