"""Downloads: a mirror that keeps the line open and drips is given up, and the next one is asked."""

import gzip
import hashlib
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import pooch
import pytest

from difflesson.digits import data

FILE = next(iter(data.MNIST_SHA256))
CONTENT = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """Start mirrors on this machine that send a body in pieces, so many seconds apart; an empty cache."""
    monkeypatch.setattr(data, "MNIST_SHA256", data.MNIST_SHA256 | {FILE: hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.delenv("DIFFLESSON_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    end, servers = threading.Event(), []

    def start(pieces: list[bytes], pause: float) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            try:
                line, _ = server.accept()
                with line:
                    line.recv(4096)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {sum(map(len, pieces))}\r\n\r\n"
                    line.sendall(head.encode())
                    for piece in pieces:
                        line.sendall(piece)
                        if end.wait(pause):
                            return
            except OSError:
                pass  # the client has given up, or the test is over

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/mnist"

    yield start
    end.set()
    for server in servers:
        server.close()


def test_a_mirror_that_drips_is_given_up_and_the_next_one_is_asked(mirror, monkeypatch):
    """A byte every 20 ms: the silence between two bytes, which a timeout measures, is always short."""
    monkeypatch.setattr(data, "PATIENCE", 0.3)
    packed = gzip.compress(CONTENT)
    drips = mirror([packed[n : n + 1] for n in range(len(packed))] + [b"x"] * 1000, 0.02)
    monkeypatch.setattr(data, "MIRRORS", (drips, mirror([packed], 0)))
    start = time.monotonic()
    assert data._read_mnist(FILE, None) == CONTENT
    assert time.monotonic() - start < 2


def test_when_all_drip_the_error_says_so(mirror, monkeypatch):
    monkeypatch.setattr(data, "PATIENCE", 0.1)
    monkeypatch.setattr(data, "MIRRORS", (mirror([b"x"] * 100, 0.05), mirror([b"x"] * 100, 0.05)))
    with pytest.raises(data.DataUnavailable, match="less than 65536 bytes in 0.1 seconds") as error:
        data._read_mnist(FILE, None)
    assert str(error.value).count("less than 65536") == 2


def test_a_slow_mirror_that_delivers_is_not_given_up(mirror, monkeypatch):
    """A chunk in less than the patience, and more patience in all."""
    monkeypatch.setattr(data, "PATIENCE", 0.5)
    monkeypatch.setattr(data, "CHUNK", 8)
    packed = gzip.compress(CONTENT)
    pieces = [packed[n : n + 8] for n in range(0, len(packed), 8)]
    monkeypatch.setattr(data, "MIRRORS", (mirror(pieces, 0.2),))
    start = time.monotonic()
    assert data._read_mnist(FILE, None) == CONTENT
    assert time.monotonic() - start > 0.5


def test_the_shipped_patience_asks_for_a_kilobyte_a_second():
    assert data.CHUNK / data.PATIENCE > 1000 and data.PATIENCE <= 60


def test_the_book_says_that_it_fetches_and_fails_soon_without_a_network(monkeypatch, tmp_path, capsys):
    build, commands = pytest.importorskip("book.build", reason="Sphinx is not installed"), []

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(build, "VENDORED", tmp_path / "static" / "mathjax")
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    monkeypatch.setattr(build.subprocess, "run", run)
    with pytest.raises(build.MathJaxOutOfReach, match="could not fetch"):
        build.vendor_mathjax()
    assert "fetching mathjax" in capsys.readouterr().out
    options = dict(word.removeprefix("--").split("=") for word in commands[0] if "=" in word)
    assert (int(options["fetch-retries"]) + 1) * int(options["fetch-timeout"]) <= 40_000


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on the path")
def test_the_book_gives_a_registry_up_that_never_answers(monkeypatch, tmp_path):
    """Forty seconds; npm alone waits a quarter of an hour."""
    build, silent = pytest.importorskip("book.build"), socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(build, "VENDORED", tmp_path / "static" / "mathjax")
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{silent.getsockname()[1]}/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    start = time.monotonic()
    with pytest.raises(build.MathJaxOutOfReach, match="could not fetch"):
        build.vendor_mathjax()
    assert time.monotonic() - start < 90
    silent.close()
