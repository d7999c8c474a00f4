"""Kernels, guidances and denoisers are parts: small frozen dataclasses that are called and that hold other parts.

So they print as what they are, `ddim(denoiser=classifier_free(...), ...)`, and show what they are made of. And memory
is a matter of the type. A multistep solver depends on what it answered before; its class says so by being
`Remembering`. `sample` starts a run by `start()`, which walks through the parts of the parts: whatever remembers,
however deep inside a guidance or a wrapper, begins with an empty memory that belongs to this run. A function that wraps
a part hides it from `start()`; then the part has no memory to use, and raises instead of turning into another method.
Where points change places, as when particles are resampled, `reorder()` walks the same way and the memories follow.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Self

from torch import Tensor

from difflesson.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a sampler. A subclass adds fields, and `__call__`."""

    def start(self, known: dict | None = None) -> Self:
        """This part for one run: each part in it that remembers has an empty memory.

        Args: known: the parts started so far, by identity; a part that stands in two places remains one.
        """
        known = {} if known is None else known
        if id(self) not in known:
            known[id(self)] = self._for_a_run({name: part.start(known) for name, part in self._inner().items()})
        return known[id(self)]

    def reorder(self, which: Tensor, known: set | None = None) -> None:
        """Let every memory in this part follow points that changed places: point i is now what `which[i]` was.

        Args: which: (N,) integers;  known: identities of the parts done so far, so that none is done twice.
        """
        known = set() if known is None else known
        if id(self) not in known:
            known.add(id(self))
            for part in self._inner().values():
                part.reorder(which, known)
            self._reorder_memory(which)

    def schedules(self) -> list:
        """All schedules in this part and in the parts of it."""
        own = [value for f in fields(self) if isinstance(value := getattr(self, f.name), Schedule)]
        return own + [one for part in self._inner().values() for one in part.schedules()]

    def _inner(self) -> dict[str, "Part"]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Part)}

    def _reorder_memory(self, which: Tensor) -> None:
        """Only what remembers has something to do here."""

    def _for_a_run(self, started: dict) -> Self:
        return replace(self, **started) if started else self


@dataclass(frozen=True, eq=False)
class Remembering(Part):
    """A part whose answer depends on its earlier answers in the same run; it keeps them in `memory`, a dictionary.

    A tensor in it with one row for each point belongs to the points, and follows them in `reorder()`.
    """

    memory: dict | None = field(default=None, repr=False, kw_only=True)

    def _for_a_run(self, started: dict) -> Self:
        return replace(self, **started, memory={})

    def _reorder_memory(self, which: Tensor) -> None:
        for name, value in (self.memory or {}).items():
            if isinstance(value, Tensor) and value.dim() and len(value) == len(which):
                self.memory[name] = value[which]

    def recall(self) -> dict:
        """The memory of the run.  Raises: ValueError outside a run, or where a function hides this part from it."""
        if self.memory is None:
            raise ValueError(
                f"{type(self).__name__} has a memory, which belongs to one run: give it to sample() or draw(), call "
                "its start() once for a run of your own, and wrap it in a Part, not in a function"
            )
        return self.memory
