"""The two digit sets: MNIST (28x28, found or downloaded) and the 8x8 digits that ship inside scikit-learn.

MNIST is looked for in this order:

1. the `folder` argument, else the folder that the environment variable DIFFLESSON_DATA names,
2. the cache of this user, `pooch.os_cache("difflesson")`,
3. the mirrors below, one after the other; what they deliver is kept in the cache.

Every read checks the SHA-256 of the *uncompressed* bytes; mirrors may compress them differently. A wrong file
in the cache is reported and replaced. A wrong file in your folder is reported and left alone, and nothing is
fetched in its place.

Only training needs these pixels: to sample, load a network that ships with the package.
"""

import gzip
import hashlib
import io
import logging
import math
import os
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto, which leaves a widget behind in notebooks even when disabled

# The original address, yann.lecun.com/exdb/mnist, no longer serves the files.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",  # PyTorch's, the one that torchvision uses
    "https://storage.googleapis.com/cvdf-datasets/mnist",  # Common Visual Data Foundation
    "https://raw.githubusercontent.com/fgnt/mnist/master",  # Paderborn University
)
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
TIMEOUT = (4.0, 15.0)  # seconds to connect, and between two bytes: being offline should not feel like hanging
CHUNK, PATIENCE = 2**16, 60.0  # bytes that must arrive in so many seconds: a byte every second never times out


class Digits(NamedTuple):
    """Images, uint8 (N, H, W) with 0 the background and 255 the ink, and their labels, int64 (N,) in 0..9."""

    images: Tensor
    labels: Tensor


class DataSet(NamedTuple):
    """One row of DATASETS.

    size: side of its images, in pixels;  read: `read(split, folder) -> Digits`;  sha256: makes the hash that a card
    records to say which data a network has seen.
    """

    size: int
    read: Callable[[str, str | Path | None], Digits]
    sha256: Callable[[], str]


class DataUnavailable(OSError):
    """MNIST is in no folder we know, and no mirror delivered it. The message says what to do."""


def load(name: str, split: str, folder: str | Path | None = None) -> Digits:
    """Load one split of a digit set.

    Args:
        name: "mnist" (28x28; 60,000 train and 10,000 test) or "embedded" (8x8; 1,442 train and 355 test).
        split: "train" or "test".
        folder: where the four IDX files of MNIST lie, raw or `.gz`; the module lists the other places.
    Raises:
        ValueError: for an unknown name or split, a folder with "embedded", or a wrong file in your folder.
        DataUnavailable: when MNIST is not in the folder given, or is nowhere and no mirror delivers it.
    Sources: LeCun, Cortes and Burges, MNIST; Alpaydin and Kaynak, UCI optical digits (in scikit-learn).
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    return find(name).read(split, folder)


def find(name: str) -> DataSet:
    """The row of a digit set.  Raises: ValueError with the names there are if this is none of them."""
    if name not in DATASETS:
        raise ValueError(f"name must be {' or '.join(map(repr, DATASETS))}, got {name!r}")
    return DATASETS[name]


def _load_mnist(split: str, folder: str | Path | None) -> Digits:
    folder = folder or os.environ.get("DIFFLESSON_DATA")  # an empty variable counts as unset, as in a shell
    folder = Path(folder).expanduser() if folder else None
    prefix = {"train": "train", "test": "t10k"}[split]
    images = parse_idx(_read_mnist(f"{prefix}-images-idx3-ubyte", folder), dimensions=3)
    labels = parse_idx(_read_mnist(f"{prefix}-labels-idx1-ubyte", folder), dimensions=1)
    return Digits(images, labels.long())


def _mnist_hash() -> str:
    """Over the hashes of the four files, so that no data are needed."""
    return hashlib.sha256("\n".join(MNIST_SHA256.values()).encode()).hexdigest()


def _load_embedded(split: str, folder: str | Path | None = None) -> Digits:
    """Split scikit-learn's digits: of each class, in the order of the file, every fifth digit is for testing.

    No random numbers, so no version of a library changes the split, and the classes stay balanced. The 13
    people who wrote these digits stand in both halves: the test error says nothing about a stranger's hand.
    """
    if folder is not None:
        raise ValueError(f"folder is for 'mnist'; 'embedded' reads no files, got {str(folder)!r}")
    from sklearn.datasets import load_digits  # a second to import, which MNIST need not wait for

    digits = load_digits()  # 1,797 images, values 0..16
    images = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)  # 0..255, rounded
    labels = digits.target.astype(np.int64)
    position_in_class = np.empty_like(labels)
    for label in range(10):
        position_in_class[labels == label] = np.arange((labels == label).sum())
    chosen = (position_in_class % 5 == 4) == (split == "test")
    return Digits(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))


def _embedded_hash() -> str:
    """Over pixels and labels, train and test."""
    tensors = [*_load_embedded("train"), *_load_embedded("test")]
    return hashlib.sha256(b"".join(t.to(torch.uint8).numpy().tobytes() for t in tensors)).hexdigest()


DATASETS = {
    "mnist": DataSet(28, _load_mnist, _mnist_hash),
    "embedded": DataSet(8, _load_embedded, _embedded_hash),
}


def to_unit(images: Tensor) -> Tensor:
    """Turn uint8 pixels (N, H, W) into float32 network input (N, 1, H, W):  x = v / 127.5 - 1, in [-1, 1].

    Raises: ValueError if `images` is not uint8 with three dimensions.
    """
    if images.dtype != torch.uint8 or images.dim() != 3:
        raise ValueError(f"images must be uint8 (N, H, W), got {images.dtype} {tuple(images.shape)}")
    return images.unsqueeze(1).float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Turn samples (N, 1, H, W) into uint8 pixels (N, H, W):  v = round(127.5 (x + 1)), clamped to 0..255.

    The inverse of `to_unit`, exactly; values outside [-1, 1] become the nearest of black and white.
    Raises: ValueError if `x` is not floating with shape (N, 1, H, W), or has a NaN.
    """
    if not x.is_floating_point() or x.dim() != 4 or x.shape[1] != 1:
        raise ValueError(f"x must be floating with shape (N, 1, H, W), got {x.dtype} {tuple(x.shape)}")
    if bool(x.isnan().any()):
        raise ValueError("x must not hold NaN: no pixel value stands for it")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).squeeze(1)


def data_hash(name: str) -> str:
    """SHA-256 that a card records to say which data a network has seen.  Raises: ValueError for an unknown name."""
    return find(name).sha256()


def parse_idx(content: bytes, dimensions: int) -> Tensor:
    """Read an IDX file of bytes: magic number 0 0 8 d, d big-endian 32-bit sizes, then exactly the values.

    Raises: ValueError if the magic number or the length is another.
    """
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if len(content) < header or content[:4] != magic:
        raise ValueError(f"content must start with {magic} and {dimensions} sizes, got {content[:header]}")
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
    if len(content) != header + math.prod(shape):
        raise ValueError(f"content must hold {shape} values, got {len(content) - header} bytes")
    values = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(values.copy())  # a copy, because tensors need writable memory


def _read_mnist(file: str, folder: Path | None) -> bytes:
    """The uncompressed bytes of one file of MNIST, from your folder, or else the cache, or else a mirror."""
    if folder is not None:
        for path in (folder / file, folder / f"{file}.gz"):
            if path.exists():
                return _read_verified(path, file)
        raise DataUnavailable(f"{folder} (argument folder, or DIFFLESSON_DATA) has no {file} or {file}.gz")

    import pooch  # only to download: it imports tqdm.auto, which warns in notebooks without widgets

    cache = pooch.os_cache("difflesson")
    if (cache / file).exists():
        try:
            return _read_verified(cache / file, file)
        except (ValueError, OSError) as error:
            warnings.warn(f"not used, to be downloaded again: {error}", stacklevel=4)

    failures = []
    for mirror in MIRRORS:
        try:
            # Pooch writes to a temporary file beside the target and renames it once the hash is right. Our
            # downloader unpacks before that, so that the known hash is the one of the uncompressed bytes.
            url = f"{mirror}/{file}.gz"
            pooch.retrieve(url, MNIST_SHA256[file], fname=file, path=cache, downloader=_download_unpacked)
            return _read_verified(cache / file, file)
        except (OSError, ValueError) as error:  # errors of requests are OSErrors around the plain reason
            reason = getattr(next(iter(error.args), None), "reason", error)
            failures.append(f"{mirror}: {str(reason)[:200]}")
            logging.getLogger(__name__).warning("no %s from %s", file, failures[-1])
    raise DataUnavailable(
        f"no valid {file} in {cache}, and no mirror delivered one:\n  " + "\n  ".join(failures) + "\n"
        "Set DIFFLESSON_DATA to a folder that holds the four IDX files of MNIST (raw or .gz), or train on\n"
        'name="embedded", which needs no network. Sampling needs no data: the networks ship with the code.'
    )


def _read_verified(path: Path, file: str) -> bytes:
    """The uncompressed bytes of `path`, or a ValueError that names it if they are not those of `file`."""
    try:
        content = _unpack(path.read_bytes())
        found = hashlib.sha256(content).hexdigest()
        if found != MNIST_SHA256[file]:
            raise ValueError(f"{len(content)} bytes with SHA-256 {found}, expected {MNIST_SHA256[file]}")
    except ValueError as error:
        raise ValueError(f"{path} is truncated or is not MNIST's {file}: {error}") from None
    return content


def _unpack(content: bytes) -> bytes:
    """Undo gzip if there is any. The bytes tell: some servers unpack a `.gz` on its way to us."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip data ({error})") from error


def _download_unpacked(url: str, output_file: str, _) -> None:
    """A downloader for pooch that writes the uncompressed file; the bar shows where stderr is a terminal.

    Raises: TimeoutError if a mirror keeps the line open and delivers next to nothing, or what pooch raises.
    """
    import pooch

    packed, failures = io.BytesIO(), []
    # total=1 until pooch knows the length: it asks whether the bar is true, which needs a total
    with tqdm(total=1, desc=Path(url).name, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def fetch():
            try:
                pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)(url, packed, None)
            except Exception as error:
                failures.append(error)

        thread, arrived = threading.Thread(target=fetch, daemon=True), -1
        thread.start()
        while thread.is_alive() and arrived < packed.tell():
            arrived = packed.tell()
            thread.join(PATIENCE)
        if thread.is_alive():
            raise TimeoutError(f"less than {CHUNK} bytes in {PATIENCE:g} seconds")
    if failures:
        raise failures.pop()  # kept in the list, it would keep its own frame, and the open socket in it
    Path(output_file).write_bytes(_unpack(packed.getvalue()))
