"""Tell whether the JSON of an exported program holds only what a network needs.

Loading a program evaluates its shapes (through sympy), looks its operators up by name, imports what
its trees of inputs name, and writes names into Python source that is then run. Each of these texts
has a plain form; a list of what is known to be harmless decides, never a list of what is bad.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any


class NotPlainError(Exception):
    """The archive holds something that a network does not need; the text says what."""


def check_json(value: Any, key: str) -> None:
    """Check the JSON of a graph or of a table of tensors, down to every string."""
    if isinstance(value, dict):
        if key in _TEXTS_ONLY:
            raise NotPlainError(f"{key} is no text")
        for inner_key, inner in value.items():
            _plain_text(inner_key)
            check_json(inner, inner_key)
        if "min_val" in value or "max_val" in value:
            for inner in value.values():
                if not isinstance(inner, int | float | None):
                    raise NotPlainError(f"the bound {inner!r} is no number")
        return
    if isinstance(value, str) and key in _RULES:
        _RULES[key](value)
        return
    if isinstance(value, list):
        for inner in value:
            check_json(inner, key)
    elif isinstance(value, str) and key != "stack_trace":
        _plain_text(value)
    elif isinstance(value, str):
        _plain_text(value.replace("\n", ""))


def _plain_text(text: str) -> None:
    """Names end up in generated source, where a control character could end a comment."""
    if not text.isprintable():
        raise NotPlainError(f"the text {text!r} holds a control character")


def _name(text: str) -> None:
    if not re.fullmatch(r"[\w.]*", text, re.ASCII):
        raise NotPlainError(f"{text!r} is no plain name")


def _file_name(text: str) -> None:
    # opaque_obj_ is unpickled freely, custom_obj_ builds objects of registered classes.
    if not re.fullmatch(r"(weight|tensor)_\w+", text, re.ASCII):
        raise NotPlainError(f"{text!r} is not stored as a tensor")


def _operator(text: str) -> None:
    parts = text.split(".")
    is_known = (
        _is_torch_operator(parts[2:])
        if parts[:2] == ["torch", "ops"]
        else re.fullmatch(r"math\.[a-z0-9]+|torch\._?sym_\w+|torch\._C\._set_grad_enabled", text)
        or (len(parts) == 2 and parts[0] == "_operator" and parts[1] in _PYTHON_OPERATORS)
    )
    if not is_known:
        raise NotPlainError(
            f"the graph calls {text!r}, which is no operator that this command knows"
        )


def _is_torch_operator(parts: list[str]) -> bool:
    """Whether the path below torch.ops is an operator, and one that computes and does no more."""
    if len(parts) not in (2, 3) or parts[0] not in _NAMESPACES or parts[1] in _FILE_OPERATORS:
        return False
    if parts[0] == "higher_order":
        return len(parts) == 2 and parts[1] in _HIGHER_ORDER
    import torch

    if parts[0] in ("torchao", "torchvision"):
        with suppress(Exception):  # they register their operators on import, if it works
            import_module(parts[0])
    target: Any = torch.ops
    for part in parts:
        target = getattr(target, part, None)
    return isinstance(target, torch._ops.OpOverload)


_NAMESPACES = frozenset(
    ("aten", "higher_order", "prims", "quantized", "quantized_decomposed", "torchao", "torchvision")
)
_FILE_OPERATORS = frozenset(("from_file", "save"))
"""The operators of `aten` that open the file they are told to."""
_HIGHER_ORDER = frozenset(
    (
        *("associative_scan", "cond", "flex_attention", "invoke_subgraph", "map_impl", "scan"),
        *("auto_functionalized", "auto_functionalized_v2", "out_dtype", "strict_mode"),
        *("tag_activation_checkpoint", "while_loop", "wrap"),
        *("wrap_activation_checkpoint", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
    )
)
"""Control flow and modes; those that run kernels or call back into Python are left out."""
_PYTHON_OPERATORS = frozenset(
    (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs"),
        *("and_", "or_", "xor", "not_", "invert", "lshift", "rshift"),
        *("eq", "ne", "lt", "le", "gt", "ge", "getitem"),
    )
)


def _expression(text: str) -> None:
    """A shape as sympy prints it: `2*s77 + 1`, `Symbol('s77', positive=True, integer=True)`."""
    _check_powers(text)
    for node in _nodes(text):
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in _SHAPE_FUNCTIONS
            if not known or any(keyword.arg is None for keyword in node.keywords):
                raise NotPlainError(f"the shape {text!r} calls what is no function of shapes")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # sympy would evaluate a text that stands anywhere else.
            if not re.fullmatch(r"\w+", node.value, re.ASCII) or not _only_in_symbols(text):
                raise NotPlainError(f"the shape {text!r} holds a text")
        elif not isinstance(node, _ARITHMETIC):
            raise NotPlainError(f"the shape {text!r} is no arithmetic")


def _check_powers(text: str) -> None:
    """sympy evaluates powers of numbers, however large: `9**9**9` takes all memory there is."""
    powers = 0
    for node in _nodes(text):
        exponent: ast.AST | None = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            exponent = node.right
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in _POWERS:
                continue
            exponent = node.args[1] if len(node.args) == 2 else None
        else:
            continue
        powers += 1
        if isinstance(exponent, ast.UnaryOp):
            exponent = exponent.operand
        is_small = isinstance(exponent, ast.Constant) and exponent.value in range(_MOST_POWER + 1)
        if not is_small or powers > _MOST_POWERS:
            raise NotPlainError(f"the shape {text[:80]!r} holds a large power")


_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift"))
_MOST_POWER, _MOST_POWERS = 8, 4


def _only_in_symbols(text: str) -> bool:
    """Whether each text in the expression is the first argument of a Symbol."""
    nodes = _nodes(text)
    texts = sum(_is_text(node) for node in nodes)
    named = sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Symbol"
        and bool(node.args)
        and _is_text(node.args[0])
        for node in nodes
    )
    return texts == named


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _guard(text: str) -> None:
    """A condition on the inputs: `L['x'].size()[0] >= 2`."""
    for node in _nodes(text):
        if isinstance(node, ast.Attribute):
            known = node.attr in _TENSOR_FACTS
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Attribute) or (
                isinstance(node.func, ast.Name) and node.func.id in _SHAPE_FUNCTIONS
            )
        else:
            known = isinstance(node, (*_ARITHMETIC, ast.Subscript))
        if not known:
            raise NotPlainError(f"the guard {text!r} is more than a condition on shapes")


def _nodes(text: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, MemoryError) as error:
        raise NotPlainError(f"{text!r} is no expression") from error


_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_TENSOR_FACTS = frozenset(("size", "stride", "storage_offset", "shape", "ndim", "dim"))
_SHAPE_FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs"),
        *("Eq", "Ne", "Equality", "Unequality", "And", "Or", "Not", "Piecewise", "ExprCondPair"),
        *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "floor", "ceiling"),
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
        *("FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow"),
        *("FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat"),
        *("TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
    )
)


def _tree(text: str) -> None:
    """The shape of inputs or outputs: JSON again, and in it JSON once more."""
    if text:
        _check_tree(json.loads(text))


def _check_tree(value: Any) -> None:
    if isinstance(value, dict):
        # Both name a Python object to import.
        for key in ("__enum__", "default_factory_module"):
            if key in value:
                raise NotPlainError(
                    "the inputs or outputs hold more than tensors, tuples and dicts"
                )
        for inner in value.values():
            _check_tree(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_tree(inner)
    elif isinstance(value, str):
        nested = _json_or_none(value)
        if isinstance(nested, dict | list | str):
            _check_tree(nested)
        elif not re.fullmatch(r"[\w .:/<>-]*", value):
            # Keyword names become parameters in generated source.
            raise NotPlainError(f"{value!r} is no plain name")


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


_RULES: dict[str, Callable[[str], None]] = {
    **dict.fromkeys(("name", "as_name", "forward_arg_names"), _name),
    "path_name": _file_name,
    **dict.fromkeys(("target", "as_operator"), _operator),
    "expr_str": _expression,
    "guards_code": _guard,
    **dict.fromkeys(("in_spec", "out_spec"), _tree),
}
_TEXTS_ONLY = frozenset(("expr_str", "guards_code", "forward_arg_names"))
"""Keys that are no names of values, so that a structure under them is an attempt to get past."""
