"""The strongest statement that parameters, activation and constraint admit.

Every condition proves a factor per step, for an iteration of its own; a step of each
costs about one product with A. So the smallest factor wins, and an A without cycles,
solved in one pass, beats all. Conditions are properties of the parameters: that a model
was trained under one of them does not keep another from holding, and saying more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from pyidl.activations import Activation
from pyidl.errors import expect
from pyidl.typing import Params
from pyidl.wellposed.base import Constraint, expect_activation, needs_slopes, size_of, unproven
from pyidl.wellposed.bounds import LARGEST
from pyidl.wellposed.certificate import Certificate
from pyidl.wellposed.infnorm import InfNorm
from pyidl.wellposed.measure import MatrixMeasure, measure_certificate, optimal_weights
from pyidl.wellposed.monotone import Monotone
from pyidl.wellposed.perronfrobenius import PerronFrobenius
from pyidl.wellposed.spectral import SpectralNorm
from pyidl.wellposed.triangular import StrictlyTriangular

__all__ = ["strongest"]


def strongest(
    params: Params, activation: Activation, constraint: Constraint, explain: bool = False
) -> Certificate:
    """The proven certificate with the smallest factor per step.

    Where nothing is proven, that of the constraint itself.

    Parameters
    ----------
    params : mapping
        With A, or L and R.
    activation : Activation
        phi.
    constraint : Constraint
        Examined first; its statement is preferred where another one saves at most a
        hundredth of the steps.
    explain : bool
        Whether `Certificate.others` lists what else was examined: what it proves, or
        why it fails.

    Returns
    -------
    Certificate
        Its `reason` names the condition and the numbers that it rests on.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import activations
    >>> A = np.array([[0.0, 16.0], [0.01, 0.0]])
    >>> strongest({"A": A}, activations.relu, InfNorm(0.99)).reason
    'lambda_pf(|A|) <= 0.4, relu is 1-Lipschitz'
    """
    expect(
        "constraint", constraint, Constraint, "use one of pyidl.wellposed, such as InfNorm(0.99)"
    )
    expect("explain", explain, bool, "use True or False")
    expect_activation(activation)
    examined: list[tuple[str, Certificate]] = []
    for name, examine in _conditions(params, activation, constraint):
        examined.append((name, examine()))
        if not explain and examined[-1][1].proven and examined[-1][1].contraction == 0:
            break
    found = [certificate for _, certificate in examined]
    own, best = found[0], min(found, key=lambda c: (not c.proven, c.contraction))
    alike = own.proven and 0 < best.contraction <= own.contraction < 1
    if alike and math.log(best.contraction) >= 1.01 * math.log(own.contraction):
        best = own  # a hundredth of the steps is no reason to quote another condition
    if not explain:
        return best
    others = tuple(
        certificate if certificate.proven else replace(certificate, applies_to=name)
        for name, certificate in examined
        if certificate is not best
    )
    return replace(best, others=others)


def _conditions(
    params: Params, activation: Activation, constraint: Constraint
) -> Iterator[tuple[str, Callable[[], Certificate]]]:
    """Names, and what computes the certificates: the constraint's own, then others."""
    yield repr(constraint), lambda: constraint.certificate(params, activation)
    n, weighted = size_of(params), getattr(constraint, "weights", None) is not None
    large = n > LARGEST
    plain: list[Constraint] = [StrictlyTriangular()] if "A" in params else []
    plain += [InfNorm(), PerronFrobenius(), SpectralNorm(), Monotone(), MatrixMeasure()]
    for other in plain:
        name = type(other).__name__
        if other == constraint or (type(other) is type(constraint) and not weighted):
            continue
        if large and isinstance(other, (PerronFrobenius, SpectralNorm, Monotone)):
            yield name, lambda: unproven(f"not examined, since n = {n} is above {LARGEST}")
            continue
        yield name, lambda other=other: other.certificate(params, activation)  # type: ignore[misc]
    if not needs_slopes(activation) and not large:
        yield "MatrixMeasure with the best weights", lambda: _best_measure(params, activation)


def _best_measure(params: Params, activation: Activation) -> Certificate:
    eta = optimal_weights(params, activation)
    if eta is None:
        return unproven("the weights that would prove it are out of range")
    return measure_certificate(params, activation, eta)
