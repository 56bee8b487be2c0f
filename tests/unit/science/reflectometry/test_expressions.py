from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.science.reflectometry.expressions import (
    Expression,
    Interval,
    Tangled,
    bounds,
    identifier,
    order,
)

# For plain numbers.
FUNCTIONS = {"min": min, "max": max, "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "abs": abs}


def value(text: str, **known: float) -> float:
    names = {name.replace("__", "."): number for name, number in known.items()}
    return Expression(text).evaluate(names, float, FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 * film.thickness", 200.0),
        ("min(film.roughness, film.thickness / 3)", 7.0),
        ("-film.roughness ** 2 + 1", -48.0),
        ("phi*6.36 + (1-phi)*.6e0", 2.04),
        (" max(1, sqrt(4), log(exp(3)), abs(-2.5)) ", 3.0),
        ("+3", 3.0),
    ],
)
def test_evaluates_as_people_mean_it(text: str, expected: float) -> None:
    assert value(text, film__thickness=100.0, film__roughness=7.0, phi=0.25) == pytest.approx(expected)


def test_tells_the_names() -> None:
    assert Expression("min(film.roughness, phi) + film.roughness\n").names == {"film.roughness", "phi"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("2 *", "cannot be read"),
        ("film 1.thickness", "cannot be read"),
        ("in.sld", "cannot be read"),
        ("(" * 30 + "x", "cannot be read"),
        ("-" * 30 + "x", "20 deep"),
        ("1e999 * x", "too large"),
        ("'x'", "must be made of"),
        ("x[0]", "must be made of"),
        ("x if y else z", "not allowed"),
        ("x // 2", "not allowed"),
        ("True", "not allowed"),
        ("1j * x", "not allowed"),
        ("a.b.c", "not allowed"),
        ("(a + b).c", "not allowed"),
        ("not x", "not allowed"),
        ("(1, 2)", "not allowed"),
        ("x and y", "not allowed"),
        ("lambda x", "cannot be read"),
        ("__import__(x)", "no function here"),
        ("open(x)", "no function here"),
        ("x.exp(2)", "not allowed"),
        ("min(x)", "2 to 8 arguments"),
        ("sqrt(x, 2)", "takes 1 argument, not 2"),
        ("min(*x, *y)", "not allowed"),
    ],
)
def test_refuses_what_is_no_expression(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Expression(text)


def test_names_that_python_could_not_read() -> None:
    assert [identifier(name) for name in ("film 1", "my-layer", "in", "film")] == [
        "film_1",
        "my_layer",
        "in_",
        "film",
    ]


def test_each_comes_after_what_it_needs() -> None:
    found = order({"a": Expression("b + c"), "b": Expression("2 * c"), "c": Expression("x")})
    assert found == ["c", "b", "a"]
    with pytest.raises(Tangled, match="a -> b -> a") as caught:
        order({"a": Expression("b"), "b": Expression("min(a, 3)")})
    assert caught.value.name == "a"


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("x - y", -5.0, -1.0),
        ("x * y", -6.0, 3.0),
        ("x ** 2", 0.0, 4.0),
        ("x ** 3", -8.0, 1.0),
        ("x ** 0", 1.0, 1.0),
        ("y ** -1", 1 / 3, 0.5),
        ("y ** 0.5", math.sqrt(2), math.sqrt(3)),
        ("abs(x)", 0.0, 2.0),
        ("1 / y", 1 / 3, 0.5),
        ("min(x, y)", -2.0, 1.0),
        ("max(x, 0)", 0.0, 1.0),
        ("exp(x)", math.exp(-2), math.e),
        ("log(y)", math.log(2), math.log(3)),
    ],
)
def test_bounds(text: str, low: float, high: float) -> None:
    found = bounds(Expression(text), {"x": Interval(-2.0, 1.0), "y": Interval(2.0, 3.0)})
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / x", "divides by what may be 0"),
        ("x ** -2", "divides by what may be 0"),
        ("x ** 0.5", "no integer"),
        ("sqrt(x)", "sqrt of what may be 0 or negative"),
        ("sqrt(max(x, 0))", "sqrt of what may be 0 or negative"),
        ("log(x)", "log of what may be 0 or negative"),
        ("exp(1000 * y)", "too large"),
        ("y ** 1000 * y ** 900", "too large"),
        ("(y * 1e300) * 1e300", "too large"),
    ],
)
def test_refuses_what_may_have_no_value_or_derivative(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bounds(Expression(text), {"x": Interval(-2.0, 1.0), "y": Interval(2.0, 3.0)})


leaves = st.sampled_from(["x", "y", "0.7", "3"])
texts = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["2", "3", "-1", "0.5"])).map(lambda t: f"({t[0]}) ** {t[1]}"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        st.tuples(st.sampled_from(["sqrt", "exp", "log", "abs"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        inner.map(lambda t: f"-({t})"),
    ),
    max_leaves=6,
)


@given(text=texts, x=st.floats(-2.0, 1.0), y=st.floats(0.5, 3.0))
def test_bounds_hold_every_value(text: str, x: float, y: float) -> None:
    try:
        expression = Expression(text)
        found = bounds(expression, {"x": Interval(-2.0, 1.0), "y": Interval(0.5, 3.0)})
    except ValueError:
        return
    number = expression.evaluate({"x": x, "y": y}, float, FUNCTIONS)
    slack = 1e-9 * max(1.0, abs(found.low), abs(found.high))
    assert found.low - slack <= number <= found.high + slack
