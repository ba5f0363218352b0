r"""What is proven at a given solution, also where nothing is proven for all inputs.

It rests on the theorem of `pyidl.certify.enclosure`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyidl.activations.base import pieces
from pyidl.arrays import backend
from pyidl.arrays.backend import to_numpy
from pyidl.arrays.table import Table, abridged
from pyidl.certify.enclosure import Equation, Search, others
from pyidl.errors import InputError, expect
from pyidl.layers.implicit import ImplicitModel
from pyidl.typing import Array

__all__ = ["LocalCertificate", "certify_solution"]


@dataclass(frozen=True, repr=False, eq=False)
class LocalCertificate:
    """What is proven at m given points, one sample a row; float64, on the host.

    Parameters
    ----------
    proven : numpy.ndarray of bool, shape (m,)
        Whether there is exactly one solution within `error` of the point.
    point : numpy.ndarray, shape (m, n)
        The points p.
    error : numpy.ndarray, shape (m, n)
        Bound of ``|x* - p|``, entry by entry; ``inf`` where nothing is proven.
    radius : numpy.ndarray, shape (m,)
        No other solution has all its entries within this distance of p. ``inf``: there
        is no other solution at all. It is what could be proven; a solution need not lie
        beyond it. 0 where nothing is proven.
    at_kink : numpy.ndarray of int, shape (m,)
        Number of units whose pre-activation cannot be told apart from a kink of phi at
        this accuracy. There phi' is not determined, and where several meet, solutions
        need not be isolated.
    reason : tuple of str
        One sentence a sample.
    """

    proven: np.ndarray
    point: np.ndarray
    error: np.ndarray
    radius: np.ndarray
    at_kink: np.ndarray
    reason: tuple[str, ...]

    @property
    def max_error(self) -> np.ndarray:
        """The largest entry of `error` of every sample, shape (m,)."""
        return np.asarray(self.error.max(axis=1))

    def _repr_html_(self) -> str:
        """What Jupyter shows: a row for each sample."""
        columns = zip(self.proven, self.max_error, self.radius, self.reason, strict=True)
        rows = [
            (f"{i}", "yes" if proven else "no", f"{error:.3g}", f"{radius:.3g}", reason)
            for i, (proven, error, radius, reason) in enumerate(columns)
        ]
        head = ("sample", "certified", "error at most", "no other within", "reason")
        return Table("Certificate at given points", head, abridged(rows))._repr_html_()

    def __repr__(self) -> str:
        m, count = len(self.proven), int(self.proven.sum())
        words = [f"{count} of {m} samples certified at the given points"]
        if count:
            worst, radius = self.max_error[self.proven].max(), self.radius[self.proven].min()
            words.append(f"exactly one solution within {worst:.3g}, {others(radius)}")
        if count < m:
            first = int(np.argmin(self.proven))
            words.append(f"sample {first}: {self.reason[first]}")
        return "; ".join(words)


def certify_solution(model: ImplicitModel, U: Array, X: Array | None = None) -> LocalCertificate:
    """Prove that there is exactly one solution near a given point, and how near.

    Nothing needs to hold for all inputs or all states: the model may violate its
    constraint, or have none. A sample is certified by the theorem at the head of
    `pyidl.certify.enclosure`, with M the inverse of ``I - D A`` and box and e found by
    iteration.

    Parameters
    ----------
    model : ImplicitModel
        Its parameters are taken as they are, exactly.
    U : array, shape (m, p)
        Inputs, as the model takes them.
    X : array, shape (m, n), optional
        The points; the states that the model solves for if left out (whether or not
        that solve converged).

    Returns
    -------
    LocalCertificate
        Sample by sample.

    Raises
    ------
    InputError
        If the activation acts on vectors, such as a softmax, or an argument does not
        fit.

    Notes
    -----
    *What it does not say.* Unless `radius` is ``inf``, other solutions may exist
    farther away, and another start may lead to them. It is a statement about these
    inputs, not about others nearby. `ImplicitModel.certificate` makes the global
    statements.

    *Rounding.* Everything is evaluated in float64 on the host, whatever the dtype of
    the model, and all sums are rounded up by a priori bounds: with ``gamma_k = k u / (1
    - k u)``, a sum of k products, in any order, is off by at most gamma_k times the sum
    of absolute products (Higham, "Accuracy and stability of numerical algorithms", 2nd
    ed., section 3.1). What is assumed is that phi is evaluated in float64 to within
    ``16 eps (|y| + |phi(y)|)``, phi' to within ``64 eps (1 + L)``, and that what the
    activation says of its slopes, kinks and curvature is true
    (`pyidl.testing.check_activation`).

    *Cost.* One inverse of order n and two products for each sample, about 6 n^3 flops;
    samples with the same slopes, such as the same active set of ReLU, share it. A
    factored A is multiplied out.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> found = certify_solution(model, np.ones((2, 3)))
    >>> found.proven, bool(found.max_error.max() < 1e-5)
    (array([ True,  True]), True)
    """
    expect(
        "model",
        model,
        ImplicitModel,
        "certify_solution takes an ImplicitModel; certify the implicit layers one by one",
    )
    phi, n = model.activation, model.hidden_dim
    if phi.vector_blocks(n):
        raise InputError(
            f"certify_solution works entry by entry, but {phi.name} acts on whole vectors; use "
            "model.certificate()"
        )
    inputs = model._admit(backend.read_array(U, "U"))
    if X is None:
        X = model.equilibrium(U, on_fail="ignore").value
    else:
        X = backend.as_real(X, name="X", xp=model.xp, dtype=model.dtype)
        if X.shape != (inputs.shape[0], n):
            raise InputError(
                f"X has shape {X.shape}; the states of these inputs have {(inputs.shape[0], n)}"
            )
    points, parts = to_numpy(X).astype(np.float64), pieces(phi, 0, n)
    m, far = len(points), np.full(points.shape, np.inf)
    reasons = ["the point is not finite"] * m
    found = LocalCertificate(
        np.zeros(m, bool), points, far, np.zeros(m), np.zeros(m, int), tuple(reasons)
    )
    unknown = [a.name for a, _ in parts if a.slope_range is None]
    if unknown:
        why = f"nothing is known of the slopes of the activation {unknown[0]!r}"
        return replace(found, reason=(f"{why}; give it a slope_range",) * m)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        problem = Equation.of(model, parts)
        everywhere = problem.everywhere()
        y, blur = problem.pre(points, to_numpy(inputs).astype(np.float64))
        for i in np.lexsort(problem.middle(y, blur).T):  # the same slopes one after another
            if np.all(np.isfinite(points[i])):
                proof = Search(problem, points[i], y[i], blur[i]).prove(everywhere)
                found.proven[i], found.error[i], found.radius[i], found.at_kink[i], reasons[i] = (
                    proof
                )
    return replace(found, reason=tuple(reasons))
