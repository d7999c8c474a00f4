"""Work on many points, in chunks: memory stays flat and in cache, and a chunk is the unit of parallel work.

Torch by itself splits every single operation over its threads, which must meet at the end of each one. On arrays of
this size that gains little, and when another program holds one of the cores it costs a factor of a hundred. Here one
thread takes a chunk from the first operation to the last, and threads meet once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier

import torch
from torch import Tensor

SIZE = 32_768  # points in a chunk; the same for any number of threads, and so are the results to the last digit


def chunked(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """`function(x, *others)` for a function of points, evaluated in chunks and joined.

    Args: x, others: tensors (N, ...) that are split alike.  Inside a chunk torch has one thread. Without gradients, as
    in a sampling loop, chunks are shared by as many threads as torch has, `torch.get_num_threads()`; with them, in
    inference mode or under autocast, this thread takes them all: what torch records belongs to a thread.
    """
    parts = list(zip(*(column.split(SIZE) for column in (x, *others)), strict=True))
    threads = torch.get_num_threads()
    if x.device.type != "cpu" or threads == 1:
        return _join([function(*part) for part in parts])
    recording = torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu")
    if len(parts) == 1 or recording:
        with one_thread():
            return _join([function(*part) for part in parts])

    def work(part):
        with torch.no_grad():  # a setting of each thread
            return function(*part)

    return _join(list(_pool(os.getpid(), threads).map(work, parts)))


@contextmanager
def one_thread():
    """Inside the `with` block torch splits no operation: for the arithmetic on points between two calls of a network.

    It holds for this thread of the program, and costs a microsecond.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads inside which torch uses one thread. They do not outlive a fork, hence the process."""
    started = Barrier(threads + 1)

    def begin():
        torch.get_num_threads()  # a thread takes over torch's setting when it first asks for it; after that, its own
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, initializer=begin, thread_name_prefix="difflesson")
    for _ in range(threads):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # what threads that start later get; `begin` has changed it
    return pool
