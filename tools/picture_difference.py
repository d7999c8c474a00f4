"""Whether two pictures show the same: a letter drawn by another version of a font library is no difference, but a curve
that moved, a label that is missing or another colour is one.

Each picture is smoothed over 5 x 5 pixels. A pixel of one is *foreign* to the other if its colour lies outside what
the other has within 2 pixels of its place, by more than 0.15 of the range from black to white. Colour is red, green,
blue and their differences: these do not see black letters, and tell blue from grey. Two pictures are the same if at
most 10 pixels of either are foreign to the other. Measured on a figure 850 pixels wide: letters without hinting or
without antialiasing, everything moved by half a pixel or by two, one dot of 800 moved: 3 foreign pixels at most; a
curve moved by 3 % of its axis 170, one letter missing 45, blue drawn as grey 2500, as green 700, the dots of another
seed 860.
"""

from io import BytesIO

import numpy as np
from matplotlib.image import imread
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

SMOOTHED = 5  # pixels
REACH = 2  # pixels
TOLERANCE = 0.15  # of the range from black to white
FOREIGN_PIXELS = 10  # as many may be


def picture_difference(committed: bytes, computed: bytes) -> str:
    """How the content of two PNG files differs, in words; empty if it does not. Equal bytes are not decoded."""
    if committed == computed:
        return ""
    pictures = []
    for name, png in (("committed", committed), ("computed", computed)):
        try:
            pictures.append(decoded(png))
        except (ValueError, OSError, SyntaxError):  # Pillow raises each of them for a broken file
            return f"the {name} picture cannot be read"
    a, b = pictures
    sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in (a, b)]
    if max(abs(a.shape[0] - b.shape[0]), abs(a.shape[1] - b.shape[1])) > REACH:
        return f"the committed picture has {sizes[0]} pixels, the computed one {sizes[1]}"
    height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    a, b = colours(a[:height, :width]), colours(b[:height, :width])
    masks = foreign(a, b), foreign(b, a)
    counts = [int(mask.sum()) for mask in masks]
    if max(counts) <= FOREIGN_PIXELS:
        return ""
    rows, columns = np.nonzero(masks[0] | masks[1])
    where = f"x {columns.min()} to {columns.max()}, y {rows.min()} to {rows.max()} from the upper left corner"
    return (
        f"{counts[0]} pixels of the committed picture have no counterpart in the computed one, {counts[1]} the other "
        f"way round; {FOREIGN_PIXELS} may. They lie at {where}, of {sizes[0]} pixels"
    )


def decoded(png: bytes) -> np.ndarray:
    """(height, width, 3) in [0, 1], on white."""
    picture = imread(BytesIO(png), format="png")
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.shape[2] == 4:
        return picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]
    return picture


def colours(picture: np.ndarray) -> np.ndarray:
    """(height, width, 5): red, green, blue, red - green, green - blue of the smoothed picture."""
    red, green, blue = np.moveaxis(uniform_filter(picture, (SMOOTHED, SMOOTHED, 1)), 2, 0)
    return np.stack([red, green, blue, red - green, green - blue], axis=2)


def foreign(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(height, width) of bool: where `a` has a colour outside the range of colours that `b` has nearby."""
    window = (2 * REACH + 1, 2 * REACH + 1, 1)
    below, above = minimum_filter(b, window) - a, a - maximum_filter(b, window)
    return (np.maximum(below, above) > TOLERANCE).any(axis=2)
