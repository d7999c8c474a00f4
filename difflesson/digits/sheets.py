"""Digits as pictures: sheets of whole rows, each drawn when the last one is written."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from difflesson.digits import checkpoints

PAGE = 640  # digits in one picture: whole rows of 8 and of 10


def write(out: Path, draw: Callable, count: int, label: int | None, gamma: float) -> str:
    """Write digits as one picture, or as numbered ones of 640, each drawn when the last is written: memory stays flat.

    Returns: where they are, in words.
    """
    from difflesson import plotting  # half a second, which other commands need not wait for

    columns, pages = 10 if label is None else 8, -(-count // PAGE)
    names = [f"{out.stem}-{page:0{len(str(pages))}}-of-{pages}.png" for page in range(1, pages + 1)]
    paths = [out] if pages == 1 else [out.with_name(name) for name in names]
    checkpoints.try_place(paths[0])
    for page, path in enumerate(paths):
        index = torch.arange(page * PAGE, min(count, (page + 1) * PAGE))
        images = draw(index, progress=True)
        with plotting.style():
            height = -(-len(index) // columns)
            figure, axes = plotting.plt.subplots(figsize=(columns * 0.55, height * 0.55 + 0.3))
            what = "every digit" if label is None else f"label {label}"
            title = f"{what}, gamma = {gamma:g}" + (f" ({page + 1} of {pages})" if pages > 1 else "")
            plotting.show_digits(axes, images, columns, title)
            with checkpoints.writing(path) as temporary:
                temporary.write_bytes(plotting.as_png(figure))
        del figure, axes  # they hold each other: without a collection, some pages more are in memory
        gc.collect()
    return f"{paths[0]} to {paths[-1].name}" if pages > 1 else str(out)
