"""Damaged checkpoints and cards: each is refused by a ValueError that names the file, none is used."""

import json
import random
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch

from difflesson.digits import checkpoints
from difflesson.digits.blueprint import Blueprint
from difflesson.digits.networks import DigitUNet

SMALL = {"widths": (8, 16), "embedding": 16}
BLUEPRINT = Blueprint(
    network="DigitUNet",
    arguments=SMALL,
    prediction="v",
    schedule="cosine",
    schedule_arguments={"log_snr_max": 20.0, "log_snr_min": -20.0},
    data="embedded",
    size=8,
)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small denoiser's checkpoint with a card."""
    path = tmp_path / "mine.safetensors"
    checkpoints.save(path, BLUEPRINT, DigitUNet(**SMALL).state_dict(), {"recipe": {"task": "denoiser"}, "metrics": {}})
    return path


def is_refused_or_as_before(path: Path, content: bytes, tensors: dict, metadata: dict) -> bool:
    """Whether a file with this content is refused by its name; if not, it must hold what it held before."""
    path.write_bytes(content)
    try:
        loaded, about = checkpoints.load_tensors(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    assert about == metadata and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    return False


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=pytest.mark.nightly)])
def test_one_flipped_bit_anywhere_is_noticed(saved, count):
    """All but the padding behind the header, which says nothing."""
    content, (tensors, metadata) = saved.read_bytes(), checkpoints.load_tensors(saved)
    draw = random.Random(0)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = [draw.randrange(header) if n % 2 else draw.randrange(len(content)) for n in range(count)]
    for place in places:
        refused = is_refused_or_as_before(saved, flipped(content, place, draw.randrange(8)), tensors, metadata)
        assert refused or content[place : place + 1].isspace()


@pytest.mark.parametrize("name", ["denoiser", "features", "guide", "judge", "reference"])
def test_one_flipped_bit_in_a_shipped_weight_is_noticed(tmp_path, name):
    """It moved pixels by 0.8 to 3.2, in silence."""
    path, content = tmp_path / f"{name}.safetensors", checkpoints.shipped(name).read_bytes()
    for place in (-1, -len(content) // 3, -len(content) // 2):
        path.write_bytes(flipped(content, place % len(content), 6))
        with pytest.raises(ValueError, match=f"^path {re.escape(str(path))} is not .*damaged or changed.*checksum$"):
            checkpoints.load_tensors(path)


def change_header(path: Path, change) -> None:
    """Pass a safetensors file's header through `change`; the bytes of the tensors stay."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])


def relabel(header):
    header["enter.weight"]["dtype"] = "I16"


def swap(header):
    one, two = "down_fine.conv1.weight", "down_fine.conv2.weight"
    header[one], header[two] = header[two], header[one]


def resize(header):
    about = json.loads(header["__metadata__"]["difflesson"])
    about["metadata"] |= {"data": "mnist", "size": 28}
    header["__metadata__"]["difflesson"] = json.dumps(about)


def without_checksum(header):
    about = json.loads(header["__metadata__"]["difflesson"])
    header["__metadata__"]["difflesson"] = json.dumps(about["metadata"])


@pytest.mark.parametrize("change", [relabel, swap, resize, without_checksum], ids=lambda change: change.__name__)
def test_a_changed_label_name_size_or_checksum_is_noticed(saved, change):
    """Half precision called int16, two weights exchanged, 8x8 called 28x28: the shapes fit, and nothing else."""
    change_header(saved, change)
    with pytest.raises(ValueError, match=f"^path {re.escape(str(saved))} is not a readable .*(checksum|sha256)"):
        checkpoints.load(saved)


def test_a_block_of_zeros_where_weights_were_is_noticed(saved):
    """What a file system may leave after a loss of power: right length, all finite."""
    content = saved.read_bytes()
    saved.write_bytes(content[:-512] + bytes(512))
    with pytest.raises(ValueError, match="damaged or changed"):
        checkpoints.load(saved)


def test_a_checkpoint_says_all_that_its_use_needs_without_its_card(saved):
    saved.with_suffix(".json").unlink()
    _, metadata = checkpoints.load_tensors(saved)
    assert metadata == json.loads(json.dumps(BLUEPRINT.write())) | {"recipe": {"task": "denoiser"}}
    assert checkpoints.load(saved).network.size == 8


CARDS = {
    "cut": '{"metrics": ',
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "NaN": '{"loss": [[1, NaN]]}',
    "infinity": '{"loss": [[1, -Infinity]]}',
    "metrics that are a number": '{"metrics": 3}',
    "metrics that are null": '{"metrics": null}',
    "a curve that is a number": '{"metrics": {"ddpm": 3}}',
    "a gamma in words": '{"metrics": {"ddpm": {"one": {}}}}',
    "brackets without end": "[" * 100_000,
    "UTF-16": b"\xff\xfe",
    "a zip file": b"PK\x03\x04\x00\x80",
}


@pytest.mark.parametrize("what", CARDS)
def test_a_malformed_card_is_refused_by_its_name(saved, what):
    card, content = saved.with_suffix(".json"), CARDS[what]
    card.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"^card {re.escape(str(card))} must be a JSON object with metrics"):
        checkpoints.load(saved)
    assert card.stat().st_size == len(content)  # and left alone


def test_a_folder_in_place_of_a_checkpoint_or_a_card_is_refused_by_its_name(saved):
    card = saved.with_suffix(".json")
    card.unlink()
    card.mkdir()
    with pytest.raises(ValueError, match=f"^card {re.escape(str(card))} must be"):
        checkpoints.load(saved)
    shutil.rmtree(card)
    saved.unlink()
    saved.mkdir()
    with pytest.raises(ValueError, match=f"^path {re.escape(str(saved))} is not a readable"):
        checkpoints.load(saved)


@pytest.mark.parametrize(
    "change",
    [{"size": 8.0}, {"schedule_arguments": {"log_snr_max": 10**400, "log_snr_min": -20}}],
    ids=lambda change: next(iter(change)),
)
def test_a_blueprint_that_nothing_can_be_built_from_is_refused_by_the_files_name(saved, change):
    """With the right checksum: somebody meant it."""
    tensors, metadata = checkpoints.load_tensors(saved)
    checkpoints.save_tensors(saved, tensors, metadata | change)
    with pytest.raises(ValueError, match=f"^path {re.escape(str(saved))} is not a network that this version can use: "):
        checkpoints.load(saved)
