"""Every tableau against the order conditions of rooted trees, in exact fractions."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import prod

import pytest

from worldsim_kernels.solve.tableaus import TABLEAUS

IRRATIONAL = {"tsit5", "dopri8"}
ROUNDING = Fraction(1, 10**15)
EMBEDDED = [name for name, method in TABLEAUS.items() if method.error is not None]


@cache
def trees(nodes):
    """The rooted trees with so many nodes; a tree is the sorted tuple of its branches."""
    return tuple(sorted(set(forests(nodes - 1, nodes - 1))))


def forests(nodes, largest) -> Iterator[tuple]:
    if nodes == 0:
        yield ()
    for first in range(1, min(nodes, largest) + 1):
        for tree in trees(first):
            for rest in forests(nodes - first, first):
                yield tuple(sorted((tree, *rest)))


@cache
def size(tree):
    return 1 + sum(map(size, tree))


@cache
def density(tree):
    """gamma(t), by which the elementary weight of an exact solution is divided."""
    return size(tree) * prod(map(density, tree))


@cache
def stage_weights(name, tree):
    """Phi_i(t) of every stage: products over the branches of sum_j a_ij Phi_j."""
    a = TABLEAUS[name].a + TABLEAUS[name].more
    values = [Fraction(1)] * len(a)
    for branch in tree:
        inner = stage_weights(name, branch)
        values = [value * dot(row, inner) for value, row in zip(values, a)]
    return tuple(values)


def dot(weights, values):
    return sum((x * y for x, y in zip(weights, values)), Fraction(0))


def defect(name, weights, order):
    """The largest violation among the conditions of exactly this order."""
    return max(
        abs(dot(weights, stage_weights(name, tree)) - Fraction(1, density(tree))) for tree in trees(order)
    )


def obeyed(name, value):
    return value <= ROUNDING if name in IRRATIONAL else value == 0


def test_there_are_as_many_rooted_trees_as_cayley_counted():
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]


def test_the_bushy_tree_is_a_quadrature_and_the_tall_one_a_factorial():
    assert density(((), (), ())) == 4
    assert density((((),),)) == 6 * 1
    assert density(((((),),),)) == 24


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_solution_has_its_order_and_not_one_more(name):
    method = TABLEAUS[name]
    for order in range(1, method.order + 1):
        assert obeyed(name, defect(name, method.b, order)), order
    assert defect(name, method.b, method.order + 1) > Fraction(1, 10**6)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_solution_has_its_order_and_not_one_more(name):
    method = TABLEAUS[name]
    embedded = [x - y for x, y in zip(method.b, method.error, strict=True)]
    for order in range(1, method.error_order + 1):
        assert obeyed(name, defect(name, embedded, order)), order
    assert defect(name, embedded, method.error_order + 1) > Fraction(1, 10**6)


def dense_defect(name, order):
    """Of sum_i p_i(theta) Phi_i(t) = theta^order / gamma(t), power by power."""
    method = TABLEAUS[name]
    powers = [*zip(*method.dense)]
    powers += [(0,) * len(method.dense)] * (order - len(powers))
    worst = Fraction(0)
    for tree in trees(order):
        for power, weights in enumerate(powers, 1):
            wanted = Fraction(1, density(tree)) if power == order else Fraction(0)
            worst = max(worst, abs(dot(weights, stage_weights(name, tree)) - wanted))
    return worst


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_interpolant_has_its_order_at_every_theta_and_not_one_more(name):
    method = TABLEAUS[name]
    for order in range(1, method.dense_order + 1):
        assert obeyed(name, dense_defect(name, order)), order
    assert dense_defect(name, method.dense_order + 1) > Fraction(1, 10**4)
    # Coefficient by coefficient is every theta; three thetas as well, so that a slip in that thought shows.
    for theta in (Fraction(1, 3), Fraction(1, 2), Fraction(9, 10)):
        weights = [sum(c * theta ** (k + 1) for k, c in enumerate(row)) for row in method.dense]
        for order in range(1, method.dense_order + 1):
            for tree in trees(order):
                found = dot(weights, stage_weights(name, tree))
                assert obeyed(name, abs(found - theta**order / density(tree)))


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_interpolant_ends_on_the_step(name):
    method = TABLEAUS[name]
    weights = method.b + (0,) * len(method.more)
    for polynomial, weight in zip(method.dense, weights, strict=True):
        assert obeyed(name, abs(sum(polynomial) - weight))
        assert len(polynomial) == len(method.dense[0])


@pytest.mark.parametrize("name", [name for name in TABLEAUS if TABLEAUS[name].reuse])
def test_interpolants_of_methods_that_end_on_a_slope_join_smoothly(name):
    dense = TABLEAUS[name].dense
    at_start = [row[0] for row in dense]
    at_end = [sum(c * (k + 1) for k, c in enumerate(row)) for row in dense]
    last = len(TABLEAUS[name].b) - 1
    for i in range(len(dense)):
        assert obeyed(name, abs(at_start[i] - (i == 0)))
        assert obeyed(name, abs(at_end[i] - (i == last)))


@pytest.mark.parametrize("name", TABLEAUS)
def test_nodes_are_row_sums_and_shapes_fit(name):
    method = TABLEAUS[name]
    stages = len(method.b)
    assert [len(row) for row in method.a + method.more] == list(range(stages + len(method.more)))
    assert len(method.c) == stages
    assert len(method.dense) == stages + len(method.more)
    for row, node in zip(method.a + method.more, method.c + method.more_c, strict=True):
        assert obeyed(name, abs(sum(row, Fraction(0)) - node))
    if method.reuse:
        assert method.a[-1] == method.b[:-1]
        assert method.b[-1] == 0
        assert method.c[-1] == 1


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_stability_polynomial_begins_as_the_exponential(name):
    """R(z) = 1 + z b (1 - z A)^-1 1: the coefficient of z^n is b A^(n-1) 1, 1/n! up to the order."""
    method = TABLEAUS[name]
    powers, factorial = [Fraction(1)] * len(method.b), 1
    for n in range(1, method.order + 1):
        factorial *= n
        assert obeyed(name, abs(dot(method.b, powers) - Fraction(1, factorial)))
        powers = [dot(row, powers) for row in method.a]
    if name in ("euler", "midpoint", "heun", "ralston", "heun3", "bosh3", "rk4", "three_eighths"):
        assert dot(method.b, powers) == 0  # as many stages as the order: the polynomial ends here
    if name == "dopri5":
        assert dot(method.b, powers) == Fraction(1, 600)


def test_a_wrong_coefficient_is_found():
    name = "dopri5"
    weights = list(TABLEAUS[name].b)
    weights[2] += Fraction(1, 10**9)
    assert defect(name, weights, 3) > 0
