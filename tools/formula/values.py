"""The numbers of a formula: batches of matrices, and what the nodes of its tree do with them.

Every value is (N, rows, columns): a number is (N, 1, 1), a vector (N, d, 1). So products keep their order, `g^T C g`
is a number, and a transposition that is missing does not fit.
"""

import lark
import torch
from torch import Tensor

from tools.formula.grammar import parsed
from tools.formula.text import Unreadable, joined

COMPUTED = {r"\log": torch.log, r"\exp": torch.exp, r"\tan": torch.tan, r"\arctan": torch.atan}


def lifted(value: object) -> Tensor:
    """A number, (N,), (N, d) or (N, d, e) as a batch of matrices, in float64."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return value if value.dim() == 3 else value[..., None] if value.dim() == 2 else value.reshape(-1, 1, 1)


def law(mean: object, cov: object) -> Tensor:
    """The Gaussian with this mean and covariance (of one number: variance), as a value, (N, d, d + 1)."""
    mean, cov = lifted(mean), lifted(cov)
    if cov.shape[1] != cov.shape[2]:
        raise Unreadable(f"a covariance of shape {tuple(cov.shape[1:])}")
    mean = mean.expand(-1, len(cov[0]), 1) if mean.shape[1] == 1 else mean
    if mean.shape[1:] != (cov.shape[1], 1):
        raise Unreadable(f"a mean of shape {tuple(mean.shape[1:])} beside a covariance of {tuple(cov.shape[1:])}")
    size = max(len(mean), len(cov))
    return torch.cat([mean.expand(size, -1, -1), cov.expand(size, -1, -1)], dim=2)


def is_number(value: Tensor) -> bool:
    return value.shape[1:] == (1, 1)


def product(a: Tensor, b: Tensor) -> Tensor:
    if is_number(a) or is_number(b):
        return a * b
    if a.shape[2] != b.shape[1]:
        raise Unreadable(f"a product of shapes {tuple(a.shape[1:])} and {tuple(b.shape[1:])}")
    return a @ b


def total(a: Tensor, b: Tensor, sign: int) -> Tensor:
    if a.shape[1:] != b.shape[1:]:
        raise Unreadable(f"a sum of shapes {tuple(a.shape[1:])} and {tuple(b.shape[1:])}")
    return a + sign * b


def powered(base: Tensor, exponent: Tensor) -> Tensor:
    if is_number(base):
        return base**exponent
    if base.shape[1] == base.shape[2] and bool((exponent == -1).all()):
        return torch.linalg.inv(base)
    raise Unreadable(f"a power of shape {tuple(base.shape[1:])}; vectors have squares as |x|^2")


def over(a: Tensor, b: Tensor) -> Tensor:
    if not is_number(b):
        raise Unreadable(f"a division by shape {tuple(b.shape[1:])}")
    return a / b


@lark.v_args(inline=True)
class Compute(lark.Transformer):
    """The value of a parsed expression. `orders` collects what stands in `O(...)`."""

    def __init__(self, letters: dict[str, object]):
        super().__init__()
        self.letters, self.orders = letters, []

    def number(self, token):
        return lifted(float(token))

    def atom(self, token):
        value = self.letters[str(token)]
        return value if isinstance(value, Tensor) and value.dim() == 3 else lifted(value)

    def group(self, _open, value, _close):
        return value

    def several(self, *parts):
        return tuple(part for part in parts if not isinstance(part, lark.Token))

    def apply(self, token, argument):
        arguments = argument if isinstance(argument, tuple) else (argument,)
        if token == "O":
            self.orders.append(arguments[0])
            return torch.zeros_like(arguments[0])
        function = self.letters.get(str(token)) or COMPUTED[token]
        try:
            return lifted(function(*arguments))
        except (TypeError, RuntimeError) as error:
            raise Unreadable(f"{token} of {len(arguments)} arguments: {error}") from None

    def add(self, a, _plus, b):
        return total(a, b, 1)

    def subtract(self, a, _minus, b):
        return total(a, b, -1)

    def negative(self, _minus, a):
        return -a

    def times(self, a, b):
        return product(a, b)

    def dot(self, a, _cdot, b):
        return product(a.mT if a.shape == b.shape and a.shape[1] > 1 else a, b)

    def divide(self, a, _slash, b):
        return over(a, b)

    def transpose(self, a, _caret, _top):
        return a.mT

    def power(self, a, _caret, exponent):
        return powered(a, exponent)

    def norm(self, _bar, a, _endbar):
        return a.square().sum((1, 2), keepdim=True).sqrt()

    def fraction(self, _frac, _a, above, _b, _c, below, _d):
        return over(above, below)

    def root(self, _sqrt, _open, a, _close):
        return a.sqrt()


def computed(tokens: list[str], letters: dict[str, object]) -> tuple[Tensor, list[Tensor]]:
    """The value of an expression, and what stands in its `O(...)`."""
    compute = Compute({r"e": torch.e} | letters)
    try:
        value = compute.transform(parsed(tokens, letters))
    except lark.exceptions.VisitError as error:
        if isinstance(error.orig_exc, Unreadable | RuntimeError):  # torch's, about shapes
            raise Unreadable(f"{joined(tokens)!r}: {error.orig_exc}") from None
        raise
    if isinstance(value, tuple):
        raise Unreadable(f"{joined(tokens)!r}: several values")
    return value, compute.orders
