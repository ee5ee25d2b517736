# Generated from chapters/13_batching.py by `course build`; edit that file.
"""The calculator: exact arithmetic on text that a model wrote, and nothing else."""

import ast
import operator
import re
from fractions import Fraction

__all__ = [
    "MAX_CHARACTERS",
    "ALLOWED_TEXT",
    "THOUSANDS",
    "OPERATORS",
    "evaluate_node",
    "format_number",
    "calculate",
]

MAX_CHARACTERS = 200
ALLOWED_TEXT = re.compile(r"""(?:[0-9+\-*/(). ]|'[^'\\]*'|"[^"\\]*"|\.count(?=\())*""")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate_node(node: ast.AST, source: str) -> Fraction:
    """Compute one node of a parsed expression, exactly.

    Args:
        node: number, + - * /, sign, or `"text".count("part")`.
        source: the text that was parsed; decimals are read from it, digit by digit.

    Returns:
        The value.

    Raises:
        ValueError: any other kind of node.
        ZeroDivisionError: division by zero.
    """
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(source, node))
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](evaluate_node(node.operand, source))
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = evaluate_node(node.left, source), evaluate_node(node.right, source)
            return OPERATORS[type(node.op)](left, right)
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return Fraction(text.count(part))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def format_number(value: Fraction) -> str:
    """Write a number the short way: 12, -0.5, or rounded to six decimals, 0.333333."""
    millionths = round(value * 10**6)
    sign = "-" if millionths < 0 else ""
    whole, rest = divmod(abs(millionths), 10**6)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def calculate(expression: str) -> str | None:
    """Work out a small sum, or count letters, without ever running code.

    Example: "(1 + 2) * 7 / 2" -> "10.5"; "'strawberry'.count('r')" -> "3"; "2**9**9" -> None.

    Args:
        expression: + - * /, parentheses, decimals, thousands commas, and `.count()` on quoted
            text; at most 200 characters. Without powers that bounds the result to 200 digits.

    Returns:
        The result, exact for whole numbers, otherwise to six decimals; None for any other text.
    """
    source = expression.strip()
    if "'" not in source and '"' not in source:
        source = THOUSANDS.sub("", source)
    if len(source) > MAX_CHARACTERS or not ALLOWED_TEXT.fullmatch(source):
        return None
    try:
        return format_number(evaluate_node(ast.parse(source, mode="eval").body, source))
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None
