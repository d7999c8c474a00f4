"""Many digits into one file, chunk by chunk: memory stays flat, and a run that was killed goes on where it stopped.

The file is safetensors: grey levels `images` (N, size, size), uint8, `labels` (N,), and how they were drawn. While it
grows it is called `….part`. Where its checksum will stand, it says how many digits it has: a number that follows only
after the digits themselves have reached the disk, and that no reader can take for a checksum.
"""

import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from difflesson.digits import checkpoints, data

DIGITS = 64  # characters of a checksum
LONGEST = 100_000  # bytes of a header, which holds a dozen short entries


def processes() -> tuple[int, int]:
    """This process's rank and how many there are, by what torchrun and accelerate say to each; alone (0, 1).

    Raises: ValueError unless the variables RANK and WORLD_SIZE are integers, the first in 0..WORLD_SIZE - 1.
    """
    said = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(one.isdecimal() for one in said) or not int(said[0]) < int(said[1]):
        raise ValueError(f"RANK must be an integer in 0..WORLD_SIZE - 1, got RANK={said[0]} WORLD_SIZE={said[1]}")
    return int(said[0]), int(said[1])


def share(path: Path, count: int, rank: int, world: int) -> tuple[Path, range]:
    """The file and the indices of one process of several: neighbouring ones, `digits-1-of-2.safetensors`.

    Raises: ValueError if there are fewer digits than processes.
    """
    if count < world:
        raise ValueError(f"count must be at least one for each of {world} processes, got {count}")
    name = path.name if world == 1 else f"{path.stem}-{rank + 1:0{len(str(world))}}-of-{world}{path.suffix}"
    return path.with_name(name), range(count * rank // world, count * (rank + 1) // world)


def store(
    path: Path, draw: Callable[[Tensor], Tensor], labels: Tensor, first: int, size: int, chunk: int, about: dict
) -> int:
    """Draw digits into `path`, going on where an interrupted run with the same `about` stopped.

    Args: draw: `draw(index) -> (n, 1, size, size)` in [-1, 1], from integers (n,);  labels: (N,), those of the digits
    from `first` on;  chunk: how many are drawn and written at a time;  about: all that decides the digits, as JSON.
    Returns: how many were drawn now; 0 if the file was complete.  `checkpoints.load_tensors` reads it.
    Raises: ValueError if `path`, or what is there of it, is of another `about`, or no file of digits;  OSError that
    names `path` and the reason, if it cannot be written or has no room.
    """
    metadata = about | {"first": first, "count": len(labels), "chunk": chunk, "torch": str(torch.__version__)}
    part, each = path.with_name(f"{path.name}.part"), size * size
    if path.exists():
        _check(path, metadata)
        return 0
    checkpoints.try_place(path)
    done = begun = _check(part, metadata) if part.exists() else 0
    with _naming(path):
        _check_room(path.parent, (len(labels) - done) * each)
        told = Told(path.name, len(labels), done)
        while done < len(labels):
            index = torch.arange(first + done, first + min(done + chunk, len(labels)))
            pixels = data.to_pixels(draw(index)).numpy().tobytes()
            head = _head(metadata, len(labels), size)
            if not (done or part.exists()):  # only now: what cannot be drawn leaves nothing
                with checkpoints.writing(part) as temporary:
                    temporary.write_bytes(head + labels.to(torch.int64).numpy().tobytes())
            with part.open("rb+", buffering=0) as file:
                _write(file, len(head) + 8 * len(labels) + done * each, pixels)
                os.fsync(file.fileno())
                done += len(index)
                _write(file, _place(head), f"{done:0{DIGITS}}".encode())
            told.say(done)
        _seal(part, metadata, size)
        os.replace(part, path)
    return done - begun


def _head(metadata: dict[str, Any], count: int, size: int) -> bytes:
    """What stands before the labels: the length of a JSON text, and that text with no digit written yet."""
    tensors = {
        "labels": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]},
        "images": {
            "dtype": "U8", "shape": [count, size, size], "data_offsets": [8 * count, (8 + size * size) * count],
        },
    }  # fmt: skip
    said = json.dumps({"sha256": "0" * DIGITS, "metadata": metadata}, allow_nan=False)
    text = json.dumps({"__metadata__": {"difflesson": said}, **tensors}).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns its tensors
    return struct.pack("<Q", len(text)) + text


def _place(head: bytes) -> int:
    """Where the checksum stands: within the first 512 bytes, which a disk writes as a whole or not at all."""
    return head.index(b"0" * DIGITS)


def _check(path: Path, metadata: dict[str, Any]) -> int:
    """How many digits a file has.  Raises: ValueError if it was drawn otherwise, or is none of ours."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(length, LONGEST)))
        said = json.loads(header["__metadata__"]["difflesson"])
        there, number = dict(said["metadata"]), str(said["sha256"])
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out must be a new file, {path} is there and is no file of digits: {error}") from error
    names = [name for name in {**metadata, **there} if there.get(name) != metadata.get(name)]
    if names:
        each = ", ".join(f"{name} {there.get(name)}, not {metadata.get(name)}" for name in names)
        raise ValueError(f"out must be a new file, {path} was drawn with {each}; choose another, or delete it")
    return int(number) if number.isdigit() else metadata["count"]


def _write(file, place: int, content: bytes) -> None:
    file.seek(place)
    written = 0
    while written < len(content):  # a disk that fills up takes a part first
        written += file.write(content[written:])


def _seal(part: Path, metadata: dict[str, Any], size: int) -> None:
    """Write the checksum where the number of digits was: `checkpoints.checksum`, of tensors that are read in pieces."""
    digest, count = hashlib.sha256(json.dumps(metadata, allow_nan=False).encode()), metadata["count"]
    head = _head(metadata, count, size)
    with part.open("rb+", buffering=0) as file:
        for what, place, length in (
            (f"images torch.uint8 {(count, size, size)}", len(head) + 8 * count, count * size * size),
            (f"labels torch.int64 {(count,)}", len(head), 8 * count),
        ):
            digest.update(f"\n{what}\n".encode())
            file.seek(place)
            while length:
                piece = file.read(min(length, 2**20))
                if not piece:
                    raise OSError("digits that were written are not there any more")
                length -= len(piece)
                digest.update(piece)
        _write(file, _place(head), digest.hexdigest().encode())
        os.fsync(file.fileno())


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder if folder.exists() else ".").free
    if free < size:
        raise OSError(f"the digits take {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


class Told:
    """How far a run is and how long it will take: a bar on a terminal, elsewhere a line every `every` seconds."""

    every = 60.0

    def __init__(self, name: str, count: int, done: int):
        self.name, self.count, self.begun, self.start, self.last = name, count, done, time.monotonic(), 0.0
        self.bar = tqdm(total=count, initial=done, desc=name, unit="digit", disable=None, file=sys.stderr)

    def say(self, done: int) -> None:
        """So many of the digits are written."""
        self.bar.update(done - self.bar.n)
        if done == self.count:
            self.bar.close()
        seconds = max(time.monotonic() - self.start, 1e-3)
        if not self.bar.disable or (seconds < self.last + self.every and done < self.count):
            return
        rate, self.last = (done - self.begun) / seconds, seconds
        left = f"{(self.count - done) / rate / 60:.1f} min left" if done < self.count else "done"
        print(f"{self.name}: {done} of {self.count} digits, {rate:.3g} a second, {left}", file=sys.stderr, flush=True)
