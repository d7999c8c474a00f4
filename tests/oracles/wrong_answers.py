"""Wrong answers made by machine from an exercise's solution: an operator exchanged, a factor or a term dropped, another
constant, another argument, an argument squared or turned round. A checker that accepts one has too few cases.
"""

import ast
import copy
from collections.abc import Iterator

OPERATORS = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.Pow: [ast.Mult],
}  # fmt: skip
ALONG = ("sum", "mean", "softmax", "diagonal")
SWAPPED = {"max": "min", "min": "max", "exp": "log", "log": "exp", "sum": "mean", "mean": "sum"}


def changed(node: ast.AST, parameters: list[str]) -> Iterator[ast.AST]:
    """What somebody might write instead of one node of an expression."""
    if isinstance(node, ast.BinOp):
        for operator in OPERATORS.get(type(node.op), []):
            yield ast.BinOp(node.left, operator(), node.right)
        yield node.left
        yield node.right
        if isinstance(node.op, ast.Div | ast.Sub | ast.Pow):
            yield ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        for value in dict.fromkeys((node.value + 1, node.value - 1, 2 * node.value, node.value / 2, -node.value)):
            if value != node.value:
                yield ast.Constant(value)
    elif isinstance(node, ast.Call):
        yield from changed_call(node)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in parameters:
        for other in parameters:
            if other != node.id:
                yield ast.Name(other, node.ctx)
                yield ast.BinOp(ast.Constant(1), ast.Div(), ast.Name(other, node.ctx))
        yield ast.UnaryOp(ast.USub(), node)
        yield ast.BinOp(node, ast.Pow(), ast.Constant(2))
        yield ast.BinOp(ast.Constant(1), ast.Div(), node)
        yield ast.Call(ast.Name("abs", ast.Load()), [node], [])


def changed_call(node: ast.Call) -> Iterator[ast.AST]:
    """The call left out; its arguments exchanged; a neighbour called instead."""
    if isinstance(node.func, ast.Attribute) and not node.args:
        yield node.func.value  # x.square() -> x
    if len(node.args) == 1 and not node.keywords:
        yield node.args[0]
    if len(node.args) == 2:
        yield ast.Call(node.func, node.args[::-1], node.keywords)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in SWAPPED:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = SWAPPED[name]
        else:
            other.func.id = SWAPPED[name]
        yield other


def values(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that say what is computed: not of whose shape or type something is, nor along which axis."""
    yield node
    for child in ast.iter_child_nodes(node):
        whole = child.value if isinstance(child, ast.Subscript) else child  # x.shape[1]
        is_form = isinstance(whole, ast.Attribute) and whole.attr in ("shape", "dtype", "device")
        is_axis = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ALONG
        if not is_form and not (is_axis and isinstance(child, ast.Constant)):
            yield from values(child)


def wrong_answers(solution: str) -> dict[str, str]:
    """What was changed, as `old -> new, in: line`, and the source with it; each source once, the solution's not."""
    tree, found = ast.parse(solution), {}
    seen = {ast.unparse(tree)}
    parameters = {id(f): [a.arg for a in f.args.args] for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for statement in (s for s in function.body if not isinstance(s, ast.FunctionDef)):
            for node in values(statement):
                for new in changed(node, parameters[id(function)]):
                    wrong = ast.unparse(with_change(tree, node, new))
                    if wrong not in seen:
                        seen.add(wrong)
                        line = ast.unparse(statement).splitlines()[0]
                        found[f"{ast.unparse(node)} -> {ast.unparse(new)}, in: {line}"] = wrong
    return found


def with_change(tree: ast.AST, old: ast.AST, new: ast.AST) -> ast.AST:
    """A copy of `tree` with `new` for `old`."""
    memo = {id(old): new}
    return ast.fix_missing_locations(copy.deepcopy(tree, memo))

