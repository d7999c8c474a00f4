"""Whether two functions are two computations, or one written twice."""

import dis
import types
from collections import Counter
from collections.abc import Callable

ALIKE = 0.5  # the share of operations in common from which on two functions count as one computation


def operations(function: Callable, seen: set | None = None) -> Counter:
    """How often a function applies each operator and names each function or attribute, its module's helpers included.

    Names of variables, the order of operands and the way they are grouped do not show.
    """
    seen, found = seen if seen is not None else set(), Counter()
    if function in seen:
        return found
    seen.add(function)
    codes, helpers = [function.__code__], [cell.cell_contents for cell in function.__closure__ or ()]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "BINARY_OP":
                found[step.argrepr.rstrip("=")] += 1
            elif step.opname in ("UNARY_NEGATIVE", "COMPARE_OP"):
                found[step.opname] += 1
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                found[step.argval] += 1
            elif step.opname == "LOAD_GLOBAL":
                value = function.__globals__.get(step.argval)
                if getattr(value, "__module__", None) == function.__module__ and hasattr(value, "__code__"):
                    helpers.append(value)
                else:
                    found[step.argval] += 1
    for helper in helpers:
        if hasattr(helper, "__code__") and helper.__module__ == function.__module__:
            found += operations(helper, seen)
    return found


def likeness(one: Callable, other: Callable) -> float:
    """Of all their operations, the share that both have: 1 for the same formula, whatever its names and its order."""
    a, b = operations(one), operations(other)
    return sum((a & b).values()) / max(1, sum((a | b).values()))
