"""A device that is not there: tensors on it have shapes and no values, and what a GPU would refuse is refused.

It is torch's "meta", watched. (Fake tensors that claim to be on "cuda" end the process where torch was built without
CUDA, as soon as one of them is sliced or differentiated.) Tensors on the CPU keep their values, as on a machine with a
GPU: times and schedules are computed, only what would be on the GPU is not. Refused are

* two devices in one operation, unless what is on the CPU is a single number, or an index;
* an index on the device into a tensor on the CPU;
* a generator of another device than the numbers that are drawn;
* a look at a value, `bool(x.max() > 1)` or `x[mask]`, which would make the host wait for the device at that place.
"""

from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAR = torch.device("meta")
aten = torch.ops.aten
DRAWS = ("rand", "randn", "randint", "multinomial")
LOOKS = (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select)
COPIES = (aten._to_copy, aten.copy_)
JOINS = (aten.cat, aten.stack)  # they take no single number of another device either


class Looked(RuntimeError):
    """The host asked for a value on the device."""


class Mixed(RuntimeError):
    """Two devices in one operation."""


class Generator(torch.Generator):
    """A generator that says on which device it is."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self):
        return self.place


class Watch(TorchDispatchMode):
    """Sees every operation.

    answers: what the next looks are answered with; further ones are refused.  Counted: fetched, the tensors that were
    copied to the CPU, where they arrive as zeros.  autocasts: (device type, dtype, enabled) of each `torch.autocast`.
    """

    def __init__(self, answers=()):
        super().__init__()
        self.answers, self.fetched, self.autocasts = list(answers), 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        far = [tensor for tensor in tensors if tensor.device == FAR]
        if not far:
            return func(*args, **kwargs)
        if name in LOOKS:
            if not self.answers:
                raise Looked(f"{func} looks at a value on the device")
            return self.answers.pop(0)
        if name in COPIES:
            if torch.device(kwargs.get("device") or args[0].device).type != "cpu":
                return func(*args, **kwargs)
            self.fetched += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        near = [tensor for tensor in tensors if tensor.device != FAR and (tensor.dim() or name in JOINS)]
        if near and not (name is aten.index and args[0].device == FAR):
            raise Mixed(f"{func} of tensors on {FAR} and on {near[0].device}, of shape {tuple(near[0].shape)}")
        if name is aten.index and any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]):
            raise Looked(f"{func} by truth values looks at them")
        return func(*args, **kwargs)

    def autocast(self, device_type, dtype=None, enabled=True, **options):
        """Only noted down: in which dtype operations would compute."""
        self.autocasts.append((device_type, dtype, enabled))
        return nullcontext()


def with_same_generator(draw):
    """`torch.randn` or another that draws, which refuses a generator of another device than the numbers."""

    def checked(*args, generator=None, **options):
        place = torch.device(options.get("device") or getattr(args[0], "device", "cpu"))
        if generator is not None and generator.device.type != place.type:
            raise RuntimeError(f"Expected a '{place}' device type for generator but found '{generator.device}'")
        return draw(*args, generator=generator, **options)

    return checked


@contextmanager
def far_device(answers=()):
    """Inside the `with` block there is a device FAR.  Gives: the `Watch`.  Its generators: `torch.Generator(FAR)`."""
    watch = Watch(answers)
    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch, "autocast", watch.autocast),
        mock.patch.multiple(torch, **{name: with_same_generator(getattr(torch, name)) for name in DRAWS}),
        watch,
    ):
        yield watch


def not_far(result) -> list[torch.Tensor]:
    """The tensors in an answer (a tensor, a tuple, an object that holds some) that are neither there nor one number."""
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in not_far(part)]
    if isinstance(result, torch.Tensor):
        return [result] if result.dim() and result.device != FAR else []
    return not_far([value for value in getattr(result, "__dict__", {}).values() if isinstance(value, torch.Tensor)])
