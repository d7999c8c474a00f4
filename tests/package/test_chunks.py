"""Chunks: the same numbers for any number of threads, gradients included, and torch's own setting left as it was."""

import pytest
import torch

from difflesson import chunks
from difflesson.chunks import chunked
from difflesson.plane import four_blobs
from difflesson.schedule import vp_linear


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def points(count):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def everything(x):
    mixture = four_blobs()
    x0, eps = mixture.denoiser(vp_linear(), 1)(x, torch.tensor(0.3, dtype=torch.float64))
    return torch.cat([x0, eps, mixture.score(x), mixture.log_prob(x)[:, None]], dim=1)


def test_two_threads_give_the_numbers_of_one_to_the_last_digit(two_threads):
    x = points(2 * chunks.SIZE + 77)
    with torch.no_grad():
        together = everything(x)
        torch.set_num_threads(1)
        assert torch.equal(together, everything(x))


def test_gradients_of_every_kind_go_through_the_chunks(two_threads):
    x = points(chunks.SIZE + 500)
    by_func = torch.func.grad(lambda x: four_blobs().log_prob(x).sum())(x)
    torch.testing.assert_close(by_func, four_blobs().score(x), atol=1e-12, rtol=0)
    leaf = points(chunks.SIZE + 500).requires_grad_()
    (slope,) = torch.autograd.grad(four_blobs().log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(slope, four_blobs().score(leaf.detach()), atol=1e-12, rtol=0)
    with torch.no_grad():
        assert not four_blobs().log_prob(leaf).requires_grad


def test_a_chunk_is_worked_on_by_one_thread_and_torch_keeps_its_setting(two_threads):
    seen = []

    def work(part):
        seen.append((len(part), torch.get_num_threads()))
        return part

    x = points(chunks.SIZE + 500)
    for recording in (False, True):
        seen.clear()
        with torch.set_grad_enabled(recording):
            assert torch.equal(chunked(work, x), x)
        assert sorted(seen) == [(500, 1), (chunks.SIZE, 1)]
    assert torch.get_num_threads() == 2


def test_columns_are_split_like_the_points(two_threads):
    x = points(2 * chunks.SIZE + 3)
    index = torch.arange(len(x))
    with torch.no_grad():
        assert torch.equal(chunked(lambda part, i: part * 0 + i[:, None], x, index)[:, 0], index.double())


def test_an_error_in_a_chunk_reaches_the_caller(two_threads):
    def work(part):
        raise ValueError("no such point")

    with torch.no_grad(), pytest.raises(ValueError, match="no such point"):
        chunked(work, points(chunks.SIZE + 1))


def test_what_was_computed_in_inference_mode_serves_gradients_later():
    mixture, leaf = four_blobs(), points(5).requires_grad_()
    with torch.inference_mode():
        mixture.log_prob(points(5))
    (slope,) = torch.autograd.grad(mixture.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(slope, mixture.score(points(5)), atol=1e-12, rtol=0)
