"""Ways to break a module on purpose: every small change to its syntax tree that could matter.

    arithmetic     + - * / // % @ & | exchanged; a sign or `~` dropped; `x += y` becomes `x = y`
    comparisons    turned round, and their border moved by one
    conditions     true, false, negated; `and` for `or`; an operand dropped; a filter dropped
    constants      0 and 1 exchanged, other numbers moved; True for False
    calls          neighbouring arguments exchanged, a keyword dropped, min for max, any for all,
                   zeros for ones; abs, sign, sorted and the like left out
    names          one side for the other: inputs and outputs, lower and upper, scale and shift
    statements     dropped; break for continue; a return of a truth value fixed
    slices         open at one end

Asserts, annotations, docstrings and texts stay: what they say is for readers.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_TWINS = (
    ("min", "max"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("zeros", "ones"),
    ("argmin", "argmax"),
    ("inputs", "outputs"),
    ("lower", "upper"),
    ("before", "after"),
    ("scale", "shift"),
    ("in_channels", "out_channels"),
    ("in_axis", "out_axis"),
    ("scale_editable", "shift_editable"),
    ("scale_known", "shift_known"),
    ("input_shift", "output_shift"),
    ("input_inverse", "output_scale"),
    ("same_scale", "same_magnitude"),
    ("setdefault", "get"),
)
_TWIN = {one: other for pair in _TWINS for one, other in (pair, pair[::-1])}
_LEFT_OUT = frozenset(
    [
        "abs",
        "sign",
        "sorted",
        "reversed",
        "distinct",
        "each_once",
        "copy",
        "squeeze",
        "broadcast_to",
        "repeat",
        "tile",
        "isinf",
        "isfinite",
        "settle",
        "compress",
        "swapaxes",
        "ascontiguousarray",
    ]
)
"""Calls of one value (or method calls) that may be missing unnoticed."""

_EITHER_WAY = frozenset(
    [
        "same",
        "same_scale",
        "same_magnitude",
        "relate",
        "maximum",
        "minimum",
        "min",
        "max",
        "multiply",
        "isin",
        "intersect1d",
    ]
)
"""Calls whose first two arguments may be exchanged."""
_SAYS_WHAT_IS_SO = frozenset(
    ["dtype", "strict", "initial", "over", "under", "invalid", "divide", "casting", "kind"]
)
"""Keywords that change nothing where their assumption holds: checks, and silence."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mutant:
    """One change: `place.field` (or one of its items) becomes `new`."""

    file: str
    line: int
    lines: tuple[int, int]
    """First and last line of the statement: a test that reaches none of them cannot kill it."""
    scope: str
    """The function or method, `Class.method`; or what a statement outside of one sets."""
    inside: bool
    """Whether it is in the body of a function."""
    before: str
    after: str
    place: ast.AST
    field: str
    index: int | None
    new: ast.AST

    @property
    def key(self) -> str:
        """What it is called where survivors are explained; line numbers move, so none here."""
        return f"{Path(self.file).name}:{self.scope}: {self.before} -> {self.after}"

    def apply(self) -> None:
        """Change the tree it was made from, for good."""
        if self.index is None:
            setattr(self.place, self.field, self.new)
        else:
            getattr(self.place, self.field)[self.index] = self.new


def mutants(tree: ast.Module, file: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    found: list[Mutant] = []
    for place, field, index, node, where in _nodes(tree):
        before = _text(node)
        texts = {before}
        for new in _changes(node, place, field):
            ast.copy_location(new, node)
            ast.fix_missing_locations(new)
            after = _text(new)
            if after in texts:
                continue
            texts.add(after)
            line = getattr(node, "lineno", where.lines[0])
            found.append(
                Mutant(
                    file,
                    line,
                    where.lines,
                    where.scope,
                    where.inside,
                    before,
                    after,
                    place,
                    field,
                    index,
                    new,
                )
            )
    return _numbered(sorted(found, key=lambda mutant: mutant.line))


def _numbered(found: list[Mutant]) -> list[Mutant]:
    """Keys that occur again get a number: which time it is."""
    times: Counter[str] = Counter()
    numbered = []
    for mutant in found:
        times[mutant.key] += 1
        again = times[mutant.key]
        after = f"{mutant.after}  [{again}]" if again > 1 else mutant.after
        numbered.append(dataclasses.replace(mutant, after=after))
    return numbered


@dataclasses.dataclass(frozen=True)
class _Where:
    scope: str
    inside: bool
    lines: tuple[int, int]


_Node = tuple[ast.AST, str, int | None, ast.AST, _Where]


def _nodes(tree: ast.Module) -> Iterator[_Node]:
    yield from _walk(tree, _Where("", False, (0, 0)))


def _walk(parent: ast.AST, where: _Where) -> Iterator[_Node]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_comment", "ctx"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _is_for_readers(node) or _is_silent(node):
                continue
            inner = _where(node, where)
            yield parent, field, index, node, inner
            yield from _walk(node, inner)


def _is_for_readers(node: ast.AST) -> bool:
    if isinstance(node, (ast.Assert, ast.Import, ast.ImportFrom, ast.Pass, ast.JoinedStr)):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_silent(node: ast.AST) -> bool:
    """Whether no change to it can be seen: a keyword that checks, an array without elements."""
    if isinstance(node, ast.keyword):
        return node.arg in _SAYS_WHAT_IS_SO
    if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") not in ("zeros", "ones"):
        return False
    size = node.args[0]
    return isinstance(size, ast.Constant) and size.value == 0


def _where(node: ast.AST, outer: _Where) -> _Where:
    if not isinstance(node, ast.stmt):
        return outer
    decorators = getattr(node, "decorator_list", [])  # what a run passes of a decorated function
    lines = (min([node.lineno, *(each.lineno for each in decorators)]), _end_of_header(node))
    if outer.inside:
        return _Where(outer.scope, True, lines)
    prefix = f"{outer.scope}." if outer.scope else ""
    if isinstance(node, ast.FunctionDef):
        return _Where(prefix + node.name, True, lines)
    if isinstance(node, ast.ClassDef):
        return _Where(prefix + node.name, False, lines)
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return _Where(prefix + (_text(target) if target is not None else ""), False, lines)


def _end_of_header(node: ast.stmt) -> int:
    """The last line of a statement, without the block it may have."""
    body = getattr(node, "body", None)
    end = node.end_lineno or node.lineno
    return max(node.lineno, body[0].lineno - 1) if isinstance(body, list) and body else end


def _text(node: ast.AST) -> str:
    text = ast.unparse(node) if isinstance(node, (ast.expr, ast.stmt, ast.comprehension)) else ""
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"


def _changes(node: ast.AST, place: ast.AST, field: str) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.stmt):
        yield from _statements(node)
        return
    if isinstance(node, ast.expr) and field == "test" and not isinstance(place, ast.Assert):
        yield from (ast.Constant(True), ast.Constant(False))
    if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp)):
        yield from _operators(node)
    elif isinstance(node, ast.Constant) and not isinstance(place, ast.UnaryOp):
        yield from _constants(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Attribute):
        yield from _attributes(node)
    elif isinstance(node, ast.Name) and node.id in _TWIN and field == "func":
        yield _with(node, id=_TWIN[node.id])
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.comprehension):
        for at in range(len(node.ifs)):
            yield _with(node, ifs=node.ifs[:at] + node.ifs[at + 1 :])
    elif isinstance(node, ast.Slice):
        yield from (_with(node, **{end: None}) for end in ("lower", "upper", "step"))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """A copy that differs in some fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(node, ast.AugAssign):
        other = _ARITHMETIC.get(type(node.op))
        if other is not None:
            yield _with(node, op=other())
        yield ast.Assign(targets=[node.target], value=node.value)
        yield ast.Pass()
    elif isinstance(node, (ast.Expr, ast.Raise, ast.Delete)) or (
        isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple))
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield from (ast.Break(), ast.Pass())
    elif isinstance(node, ast.Break):
        yield from (ast.Continue(), ast.Pass())
    elif isinstance(node, ast.Return) and isinstance(node.value, (ast.Compare, ast.BoolOp)):
        yield from (ast.Return(ast.Constant(True)), ast.Return(ast.Constant(False)))
    elif isinstance(node, (ast.With, ast.For)):
        yield ast.Pass()


def _operators(node: ast.expr) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        other = _ARITHMETIC.get(type(node.op))
        if other is not None:
            yield _with(node, op=other())
        if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr)):
            yield node.left
        if isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
            yield node.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.Compare):
        for other in _COMPARISONS[type(node.ops[0])]:
            yield _with(node, ops=[other(), *node.ops[1:]])
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for at in range(len(node.values)):
            rest = node.values[:at] + node.values[at + 1 :]
            yield rest[0] if len(rest) == 1 else _with(node, values=rest)


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield from (ast.Constant(value + 1), *([ast.Constant(value - 1)] if value else []))
    elif isinstance(value, float):
        yield ast.Constant(0.0 if value == 1.0 else 1.0)
        if value not in (0.0, 1.0):
            yield from (ast.Constant(value * 1e3), ast.Constant(value / 1e3))
        else:
            yield ast.Constant(value + 1.0)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    first = 1 if name == "where" or name in _EITHER_WAY else 0
    for at in range(first, len(node.args) - 1):
        swapped = list(node.args)
        swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
        yield _with(node, args=swapped)
    if name == "where" and len(node.args) == 3:
        yield from node.args[1:]
    for at, keyword in enumerate(node.keywords):
        if keyword.arg not in _SAYS_WHAT_IS_SO:
            yield _with(node, keywords=node.keywords[:at] + node.keywords[at + 1 :])
    if name not in _LEFT_OUT:
        return
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    elif isinstance(node.func, ast.Attribute):
        yield node.func.value


def _attributes(node: ast.Attribute) -> Iterator[ast.AST]:
    if node.attr in _TWIN:
        yield _with(node, attr=_TWIN[node.attr])
    if isinstance(node.value, ast.Name) and node.value.id == "Reason":
        yield _with(node, attr="MODULE_DOES_MORE")
