"""The digit sets: where they are looked for, that a wrong file is never used, and the exact conversions.

No test needs MNIST or the outside network: tiny files of the same format stand for its files, and servers on
this machine for the mirrors. One test reads the real MNIST, if DIFFLESSON_DATA says where it lies.
"""

import gzip
import hashlib
import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
import torch

from difflesson.digits import data

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = data.MNIST_SHA256
EMBEDDED_SHA256 = "9f66296b618a7657d1dff99bb57a177ab02e95b9139bbcc993bff2c1786898ee"


def tiny_idx(count: int, seed: int) -> tuple[bytes, bytes]:
    """An image file and a label file in the format of MNIST, with `count` images of 4x3."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 4, 3), dtype=np.uint8)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    return (
        bytes([0, 0, 8, 3]) + np.array([count, 4, 3], ">u4").tobytes() + images.tobytes(),
        bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes() + labels.tobytes(),
    )


def damage(content: bytes) -> bytes:
    """The same length, one pixel changed."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Tiny files in place of MNIST, an empty cache, no mirror, and no DIFFLESSON_DATA."""
    files = dict(zip(data.MNIST_SHA256, tiny_idx(7, seed=1) + tiny_idx(5, seed=2), strict=True))
    cache, folder = tmp_path / "cache", tmp_path / "mine"
    folder.mkdir()
    monkeypatch.delenv("DIFFLESSON_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(data, "MNIST_SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in files.items()})
    monkeypatch.setattr(data, "MIRRORS", ())
    monkeypatch.setattr(data, "TIMEOUT", (30.0, 30.0))  # a slow machine must not look like a silent mirror
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache)
    return SimpleNamespace(files=files, cache=cache, folder=folder)


@pytest.fixture
def serve():
    """Start mirrors on this machine. `answer(file)` gives the response of one, or None for "404 not found".

    A response is (body, headers); a Content-Length above the length of the body cuts the transfer short.
    """
    servers = []

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, request, client_address):
            pass  # a client that has given up is what some tests are about

    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.server.requests.append(self.path)
                response = answer(self.path.rsplit("/", 1)[-1])
                if response is None:
                    return self.send_error(404)
                body, headers = response
                self.send_response(200)
                for key, value in headers.items():
                    self.send_header(key, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        server.requests = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/mnist"
        return SimpleNamespace(address=address, requests=server.requests)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def packed(files, change=lambda body: body):
    """An answer for `serve`: the gzip of each file, passed through `change`, with its right length."""

    def answer(name):
        body = change(gzip.compress(files[name.removesuffix(".gz")]))
        return body, {"Content-Length": len(body)}

    return answer


def refused() -> str:
    """The address of a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/mnist"


def assert_is(digits: data.Digits, images: bytes, labels: bytes) -> None:
    assert digits.images.dtype == torch.uint8 and digits.labels.dtype == torch.int64
    assert digits.images.shape[1:] == (4, 3)
    assert digits.images.numpy().tobytes() == images[16:]
    assert digits.labels.tolist() == list(labels[8:])


def cached(tiny) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny.cache.glob("*")} if tiny.cache.exists() else {}


# ---- a folder of yours


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("given_by", ["argument", "variable"])
def test_a_folder_with_raw_or_gz_files_is_used_and_left_as_it_was(tiny, monkeypatch, suffix, given_by):
    for name, content in tiny.files.items():
        (tiny.folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tiny.folder.iterdir()}
    if given_by == "variable":
        monkeypatch.setenv("DIFFLESSON_DATA", str(tiny.folder))
    folder = tiny.folder if given_by == "argument" else None
    assert_is(data.load("mnist", "train", folder), tiny.files[TRAIN_IMAGES], tiny.files[TRAIN_LABELS])
    assert_is(data.load("mnist", "test", folder), tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tiny.folder.iterdir()} == before
    assert not tiny.cache.exists()


def test_the_argument_comes_before_the_variable_before_the_cache_before_the_mirrors(
    tiny, serve, monkeypatch, tmp_path
):
    mirror = serve(packed(tiny.files))
    monkeypatch.setattr(data, "MIRRORS", (mirror.address,))
    other = tmp_path / "empty"
    other.mkdir()
    for name, content in tiny.files.items():
        (tiny.folder / name).write_bytes(content)
    monkeypatch.setenv("DIFFLESSON_DATA", str(other))
    data.load("mnist", "test", tiny.folder)  # the argument wins over the empty folder of the variable
    with pytest.raises(data.DataUnavailable, match="empty"):
        data.load("mnist", "test")  # and the variable over the mirror, which would have the files
    assert mirror.requests == []
    monkeypatch.setenv("DIFFLESSON_DATA", "")  # counts as unset
    data.load("mnist", "test")
    assert len(mirror.requests) == 2
    data.load("mnist", "test")  # the second time from the cache
    assert len(mirror.requests) == 2


@pytest.mark.parametrize(
    "name, spoil",
    [
        (TEST_IMAGES, lambda content: content[:-5]),
        (TEST_IMAGES, damage),
        (TEST_IMAGES, lambda content: b""),
        (TEST_IMAGES + ".gz", lambda content: gzip.compress(content)[:-12]),
        (TEST_IMAGES + ".gz", lambda content: gzip.compress(damage(content))),
        (TEST_IMAGES + ".gz", lambda content: damage(gzip.compress(content))),
    ],
    ids=["truncated", "altered", "empty", "truncated gz", "altered inside gz", "damaged gz"],
)
def test_a_wrong_file_of_yours_is_named_and_neither_used_nor_touched_nor_replaced(
    tiny, serve, monkeypatch, name, spoil
):
    mirror = serve(packed(tiny.files))
    monkeypatch.setattr(data, "MIRRORS", (mirror.address,))
    wrong = spoil(tiny.files[TEST_IMAGES])
    (tiny.folder / name).write_bytes(wrong)
    (tiny.folder / TEST_LABELS).write_bytes(tiny.files[TEST_LABELS])
    with pytest.raises(ValueError, match="is truncated or is not MNIST's") as error:
        data.load("mnist", "test", tiny.folder)
    assert str(tiny.folder / name) in str(error.value)
    assert (tiny.folder / name).read_bytes() == wrong
    assert mirror.requests == []


def test_files_that_were_swapped_are_refused(tiny):
    (tiny.folder / TEST_IMAGES).write_bytes(tiny.files[TRAIN_IMAGES])
    with pytest.raises(ValueError, match=TEST_IMAGES):
        data.load("mnist", "test", tiny.folder)


# ---- downloads


def test_a_download_fills_the_cache_with_the_verified_uncompressed_files(tiny, serve, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (serve(packed(tiny.files)).address,))
    assert_is(data.load("mnist", "train"), tiny.files[TRAIN_IMAGES], tiny.files[TRAIN_LABELS])
    # the two files and nothing else: no temporary file stays behind
    assert cached(tiny) == {name: tiny.files[name] for name in (TRAIN_IMAGES, TRAIN_LABELS)}


def test_how_the_mirror_compresses_and_announces_does_not_matter(tiny, serve, monkeypatch):
    """Another gzip level, no compression, gzip announced as the transfer's encoding, no length announced."""

    def encoded(name):
        body = gzip.compress(tiny.files[name.removesuffix(".gz")])
        return body, {"Content-Length": len(body), "Content-Encoding": "gzip"}

    def unannounced(name):
        return gzip.compress(tiny.files[name.removesuffix(".gz")]), {}

    for answer in (
        packed(tiny.files, lambda body: gzip.compress(gzip.decompress(body), compresslevel=1)),
        packed(tiny.files, gzip.decompress),
        encoded,
        unannounced,
    ):
        monkeypatch.setattr(data, "MIRRORS", (serve(answer).address,))
        assert_is(data.load("mnist", "test"), tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])
        assert cached(tiny) == {name: tiny.files[name] for name in (TEST_IMAGES, TEST_LABELS)}
        for path in tiny.cache.iterdir():
            path.unlink()


def test_the_next_mirror_is_asked_when_one_fails_and_what_failed_is_logged(tiny, serve, monkeypatch, caplog):
    """Refused, missing, a log-in page, cut short in transfer, cut short on the server, and altered."""

    def cut(name):
        body = gzip.compress(tiny.files[name.removesuffix(".gz")])
        return body[:-9], {"Content-Length": len(body)}

    broken = [
        serve(lambda name: None),
        serve(lambda name: (b"<html>Please log in to this network</html>", {"Content-Length": 42})),
        serve(cut),
        serve(packed(tiny.files, lambda body: body[:-9])),
        serve(packed(tiny.files, lambda body: gzip.compress(damage(gzip.decompress(body))))),
    ]
    good = serve(packed(tiny.files))
    monkeypatch.setattr(data, "MIRRORS", (refused(), *(mirror.address for mirror in broken), good.address))
    assert_is(data.load("mnist", "test"), tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])
    assert cached(tiny) == {name: tiny.files[name] for name in (TEST_IMAGES, TEST_LABELS)}
    for mirror in (*broken, good):
        assert len(mirror.requests) == 2
    messages = [record.getMessage() for record in caplog.records if record.name == data.__name__]
    for address in data.MIRRORS[:-1]:
        assert sum(f"no {TEST_IMAGES} from {address}:" in message for message in messages) == 1
    assert not any(good.address in message for message in messages)


@pytest.mark.parametrize("spoil", [lambda content: content[:-5], damage, lambda content: b""])
def test_a_wrong_file_in_the_cache_is_reported_and_replaced(tiny, serve, monkeypatch, spoil):
    tiny.cache.mkdir()
    for name, content in tiny.files.items():
        (tiny.cache / name).write_bytes(content)
    (tiny.cache / TEST_LABELS).write_bytes(spoil(tiny.files[TEST_LABELS]))
    mirror = serve(packed(tiny.files))
    monkeypatch.setattr(data, "MIRRORS", (mirror.address,))
    with pytest.warns(UserWarning, match="not used, to be downloaded again") as reports:
        digits = data.load("mnist", "test")
    assert_is(digits, tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])
    assert str(tiny.cache / TEST_LABELS) in str(reports[0].message)
    assert reports[0].filename == __file__  # the warning points at the caller
    assert mirror.requests == [f"/mnist/{TEST_LABELS}.gz"]
    assert cached(tiny) == tiny.files
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load("mnist", "test")


def test_a_wrong_file_in_the_cache_is_not_used_even_when_nothing_can_replace_it(tiny):
    tiny.cache.mkdir()
    (tiny.cache / TEST_IMAGES).write_bytes(damage(tiny.files[TEST_IMAGES]))
    with pytest.warns(UserWarning, match="not used"), pytest.raises(data.DataUnavailable):
        data.load("mnist", "test")


def test_an_interrupt_in_a_download_leaves_the_cache_as_it_was(tiny, serve, monkeypatch):
    tiny.cache.mkdir()
    (tiny.cache / TEST_IMAGES).write_bytes(tiny.files[TEST_IMAGES])
    before = cached(tiny)
    monkeypatch.setattr(data, "MIRRORS", (serve(packed(tiny.files)).address,))
    with monkeypatch.context() as patch:

        def write_half_and_interrupt(url, output_file, pooch):
            Path(output_file).write_bytes(tiny.files[TEST_LABELS][:5])
            raise KeyboardInterrupt

        patch.setattr(data, "_download_unpacked", write_half_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            data.load("mnist", "test")
    assert cached(tiny) == before
    assert_is(data.load("mnist", "test"), tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])


def test_a_killed_download_leaves_no_file_under_a_final_name(tiny, serve, monkeypatch):
    child = f"""
import sys
from pathlib import Path
from difflesson.digits import data
import pooch
pooch.os_cache = lambda project: Path({str(tiny.cache)!r})
data.MNIST_SHA256 = {data.MNIST_SHA256!r}
data.MIRRORS = (sys.argv[1],)
data.load("mnist", "test")
"""
    begun, end = threading.Event(), threading.Event()

    def stall(name):
        begun.set()
        end.wait(60)

    environment = {key: value for key, value in os.environ.items() if key != "DIFFLESSON_DATA"}
    process = subprocess.Popen([sys.executable, "-c", child, serve(stall).address], env=environment)
    assert begun.wait(60), "the child never asked the mirror"
    process.kill()
    process.wait()
    end.set()
    assert not set(cached(tiny)) & set(tiny.files)
    monkeypatch.setattr(data, "MIRRORS", (serve(packed(tiny.files)).address,))
    assert_is(data.load("mnist", "test"), tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])


def test_loads_at_the_same_time_agree(tiny, serve, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (serve(packed(tiny.files)).address,))
    with ThreadPoolExecutor(8) as pool:
        for digits in pool.map(lambda _: data.load("mnist", "test"), range(8)):
            assert_is(digits, tiny.files[TEST_IMAGES], tiny.files[TEST_LABELS])
    assert cached(tiny) == {name: tiny.files[name] for name in (TEST_IMAGES, TEST_LABELS)}


def test_when_nothing_is_reachable_one_error_says_what_to_do(tiny, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (refused(), refused()))
    with pytest.raises(data.DataUnavailable) as error:
        data.load("mnist", "train")
    message = str(error.value)
    for part in (TRAIN_IMAGES, str(tiny.cache), *data.MIRRORS, "DIFFLESSON_DATA", '"embedded"', "Sampling"):
        assert part in message
    assert message.count("Failed to establish a new connection") == 2
    assert isinstance(error.value, OSError)
    assert max(map(len, message.splitlines())) < 300
    assert cached(tiny) == {}


def test_a_silent_mirror_is_given_up_after_the_timeout(tiny, monkeypatch):
    """A socket that takes the connection and never answers. It closes after 20 s: no hang."""
    monkeypatch.setattr(data, "TIMEOUT", (30.0, 0.2))
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(data, "MIRRORS", (f"http://127.0.0.1:{silent.getsockname()[1]}/mnist",))
    in_the_end = threading.Timer(20, silent.close)
    in_the_end.start()
    with pytest.raises(data.DataUnavailable, match="timed out"):
        data.load("mnist", "test")
    in_the_end.cancel()
    silent.close()


def test_the_shipped_timeouts_are_short_enough_for_being_offline():
    connect, read = data.TIMEOUT
    assert 0 < connect <= 5 and 0 < read <= 30


def test_the_progress_bar_shows_on_a_terminal_and_only_there(tiny, serve, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(data, "MIRRORS", (serve(packed(tiny.files)).address,))
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        data.load("mnist", "test")
        assert (f"{TEST_IMAGES}.gz:" in stream.getvalue()) == shown
        for path in tiny.cache.iterdir():
            path.unlink()


def test_the_mirrors_are_several_and_encrypted():
    assert len(set(data.MIRRORS)) >= 3
    assert all(mirror.startswith("https://") and not mirror.endswith("/") for mirror in data.MIRRORS)


# ---- the IDX format


def test_parse_idx_reads_big_endian_sizes_and_every_value():
    content = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + bytes([1, 2, 3, 253, 254, 255])
    expected = torch.tensor([[[1, 2, 3]], [[253, 254, 255]]], dtype=torch.uint8)
    values = data.parse_idx(content, dimensions=3)
    assert torch.equal(values, expected)
    values.zero_()  # the memory is the tensor's own
    assert content[16:] == bytes([1, 2, 3, 253, 254, 255])
    assert data.parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 0]), dimensions=1).shape == (0,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes([0, 0, 8]),
        bytes([0, 0, 8, 1, 0, 0]),
        bytes([0, 0, 8, 2, 0, 0, 0, 2, 7, 7]),  # two dimensions announced
        bytes([0, 0, 9, 1, 0, 0, 0, 2, 7, 7]),  # signed bytes
        bytes([0, 1, 8, 1, 0, 0, 0, 2, 7, 7]),
        bytes([1, 8, 0, 0, 2, 0, 0, 0, 7, 7]),  # little-endian
        bytes([0, 0, 8, 1, 0, 0, 0, 2, 7]),  # one value short
        bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 7, 7]),  # one value too many
        bytes([0, 0, 8, 1, 255, 255, 255, 255, 7]),
    ],
)
def test_parse_idx_refuses_every_other_magic_number_and_length(content):
    with pytest.raises(ValueError, match="content must"):
        data.parse_idx(content, dimensions=1)


def test_parse_idx_does_not_overflow_on_huge_sizes():
    with pytest.raises(ValueError, match="content must hold"):  # 2^31 * 2^31 * 4 is 0 in 64 bits
        data.parse_idx(bytes([0, 0, 8, 3]) + bytes([128, 0, 0, 0]) * 2 + bytes([0, 0, 0, 4]), dimensions=3)


# ---- the embedded set


def test_the_embedded_set_is_scikit_learns_split_in_two_without_loss():
    from sklearn.datasets import load_digits

    source = load_digits()
    train, test = data.load("embedded", "train"), data.load("embedded", "test")
    assert train.images.shape == (1442, 8, 8) and test.images.shape == (355, 8, 8)
    rounded = np.floor(source.images * 255 / 16 + 0.5).astype(np.uint8)

    def pairs(images, labels):
        return [(bytes(i.flatten().tolist()), int(label)) for i, label in zip(images, labels, strict=True)]

    assert sorted(pairs(*train) + pairs(*test)) == sorted(pairs(rounded, source.target))
    assert int(train.images.min()) == 0 and int(train.images.max()) == 255


def test_the_embedded_split_is_stratified():
    for split, share in (("train", 0.8), ("test", 0.2)):
        counts = data.load("embedded", split).labels.bincount().double()
        totals = sum(data.load("embedded", s).labels.bincount() for s in ("train", "test"))
        assert counts.shape == (10,)
        assert (counts - share * totals).abs().max() < 1


def test_the_embedded_set_is_the_same_everywhere():
    """The hash is pinned: another version of scikit-learn, or of our split, would make old cards untrue."""
    assert data.data_hash("embedded") == EMBEDDED_SHA256


# ---- hashes, conversions and bad input


def test_the_hash_of_mnist_needs_no_data_and_covers_every_file(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFLESSON_DATA", str(tmp_path))
    reference = data.data_hash("mnist")
    assert len(bytes.fromhex(reference)) == 32 and reference != data.data_hash("embedded")
    for name in data.MNIST_SHA256:
        with monkeypatch.context() as patch:
            patch.setitem(data.MNIST_SHA256, name, "0" * 64)
            assert data.data_hash("mnist") != reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_to_pixels_inverts_to_unit_for_every_pixel_value(dtype):
    images = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16)
    x = data.to_unit(images)
    assert x.dtype == torch.float32 and x.shape == (2, 1, 8, 16)
    assert float(x.min()) == -1 and float(x.max()) == 1
    restored = data.to_pixels(x.to(dtype))
    assert restored.dtype == torch.uint8 and restored.shape == images.shape
    # bfloat16 is spaced by 2^-8 below 1, the levels by 2 / 255: rounding costs a quarter of a level at most
    assert torch.equal(restored, images)


def test_to_pixels_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-torch.inf, -1.5, -1.0, -0.9961, -0.9960, 1.0, 1.5, torch.inf]).reshape(1, 1, 2, 4)
    assert data.to_pixels(x).flatten().tolist() == [0, 0, 0, 0, 1, 255, 255, 255]
    assert data.to_pixels(x[:0]).shape == (0, 2, 4)


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda: data.load("MNIST", "train"), "name"),
        (lambda: data.load("mnist", "validation"), "split"),
        (lambda: data.load("embedded", "train", Path("here")), "folder"),
        (lambda: data.data_hash("digits"), "name"),
        (lambda: data.find("digits"), "name"),
        (lambda: data.to_unit(torch.zeros(2, 8, 8)), "images"),
        (lambda: data.to_unit(torch.zeros(8, 8, dtype=torch.uint8)), "images"),
        (lambda: data.to_pixels(torch.zeros(2, 8, 8)), "x"),
        (lambda: data.to_pixels(torch.zeros(2, 3, 8, 8)), "x"),
        (lambda: data.to_pixels(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), "x"),
        (lambda: data.to_pixels(torch.full((1, 1, 2, 2), torch.nan)), "x"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument} (must|is)"):
        call()


def test_the_table_says_how_large_the_images_of_each_set_are(monkeypatch):
    images = data.load("embedded", "test").images
    assert images.shape[1:] == 2 * (data.DATASETS["embedded"].size,)
    assert data.DATASETS["mnist"].size == 28  # that its images are, the parser sees in the file

    made = data.Digits(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
    row = data.DataSet(4, lambda split, folder: made, lambda: "a hash")
    monkeypatch.setitem(data.DATASETS, "new", row)  # a new row is all that a new set takes
    assert data.load("new", "train") is made and data.data_hash("new") == "a hash"
    with pytest.raises(ValueError, match="^name must be 'mnist' or 'embedded' or 'new', got 'old'$"):
        data.load("old", "train")


@pytest.mark.skipif(not os.environ.get("DIFFLESSON_DATA"), reason="DIFFLESSON_DATA is not set: no real MNIST")
def test_the_real_mnist_has_its_known_counts():
    for split, counts in (
        ("train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ):
        digits = data.load("mnist", split)
        assert digits.images.shape == (sum(counts), 28, 28) and digits.images.dtype == torch.uint8
        assert digits.labels.bincount().tolist() == counts
