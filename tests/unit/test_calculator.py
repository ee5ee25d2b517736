"""The calculator: exact, agrees with Python's own arithmetic, and never runs anything."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.inference.calculator import calculate, format_number

integers = st.integers(0, 10**6).map(str)
sums = st.recursive(
    integers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(sums)
def test_integers_equal_python(text):
    assert calculate(text) == str(eval(text))


@settings(max_examples=30, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_division_is_exact_or_rounded_to_six_decimals(a, b):
    result = calculate(f"({a})/{b}")
    assert abs(Fraction(result) - Fraction(a, b)) <= Fraction(1, 2 * 10**6)
    assert ("." in result) <= (a % b != 0)  # a whole quotient is written without a point
    assert not result.endswith(".") and not ("." in result and result.endswith("0"))


@settings(max_examples=30, deadline=None)
@given(st.decimals(0, 10**6, places=3), st.decimals(0, 10**6, places=2))
def test_decimals_are_exact(a, b):
    exact = (Fraction(str(a)) * Fraction(str(b))).limit_denominator(10**5)
    assert Fraction(calculate(f"{a:f}*{b:f}")) == exact


@settings(max_examples=30, deadline=None)
@given(st.text("abr ", max_size=30), st.text("abr ", max_size=3))
def test_counting_equals_python(text, part):
    assert calculate(f"'{text}'.count(\"{part}\")") == str(text.count(part))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=300))
def test_any_text_gives_text_or_none(text):
    assert isinstance(calculate(text), str | None)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("0.1+0.2", "0.3"),
        ("1,234,567 + 1", "1234568"),
        (" 7/2 ", "3.5"),
        ("-7/2", "-3.5"),
        ("-1/3", "-0.333333"),
        ("2/3", "0.666667"),
        ("1/10000000", "0"),
        ("-1/10000000", "0"),
        ("3.", "3"),
        (".5*4", "2"),
        ("100", "100"),
        ("'Strawberry'.count('r') + 1", "4"),
        ("'1,000'.count(',')", "1"),  # no thousands comma inside quotes
        ("9" * 99 + "*" + "9" * 99, str(int("9" * 99) ** 2)),
    ],
)
def test_by_hand(text, result):
    assert calculate(text) == result


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            " ",
            "1+",
            "(1",
            "1 2",
            "2**3",
            "7//2",
            "7%2",
            "1<2",
            "1e5",
            "0x10",
            "1_000",
            "1j",
            "007",
        ],
        *[
            "x",
            "abs(1)",
            "__import__('os')",
            "'a'",
            "'a'+'b'",
            "'a'*9",
            "True",
            "None",
            "[1]",
            "1,2",
        ],
        *[
            "'a'.count",
            "'a'.count()",
            "'a'.count('a', 0)",
            "'a'.upper()",
            "'a'.count(1)",
            "(1).count(2)",
        ],
        *["'abc'.count(sub='a')", "'a'.count(*'a')", r"'\x41'.count('A')", "'a'.count('a').real"],
        *[
            "1/0",
            "1/(2-2)",
            "9**9**9",
            "1\n+1",
            "1;2",
            "12,34",
            "1" * 201,
            "lambda: 1",
            "f'1'",
            "b'a'.count('a')",
        ],
        *["(" * 100 + ")" * 100, "-" * 200, "'a'.count('a'", "'a'.__class__"],
    ],
)
def test_everything_else_is_none(text):
    assert calculate(text) is None


def test_deep_nesting_and_long_products_end():
    assert calculate("(" * 90 + "1" + ")" * 90) == "1"
    assert calculate("-" * 199 + "1") == "-1"
    assert len(calculate("9*" * 99 + "9")) < 200


def test_format_number_writes_no_negative_zero_and_no_exponent():
    assert format_number(Fraction(-1, 10**9)) == "0"
    assert format_number(Fraction(10**40)) == "1" + "0" * 40
    assert format_number(Fraction(1, 10**6)) == "0.000001"
