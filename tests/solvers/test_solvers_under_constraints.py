"""One point for every solver, activation, constraint and dtype, forward and adjoint.

Within what the certificate allows two residuals to differ.
"""

from dataclasses import replace

import numpy as np
import pytest
from conditions import AROUND, CONSTRAINTS, N
from helpers import host
from problems import ADJOINT, FORWARD, adjoint, adjoint_solution, splits

from pyidl import activations
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.matrices.read import read_model
from pyidl.solvers import Auto, Picard
from pyidl.solvers.problem import Affine
from pyidl.wellposed import Unconstrained

ACTIVATIONS = [
    activations.relu,
    activations.leaky_relu(0.1),
    activations.tanh,
    activations.hard_tanh,
    activations.sigmoid,
    activations.abs,
]


def must_converge(name, constraint, dtype):
    """Auto always; the plain iterations where they contract.

    (In float32 a norm that is far from the plain one may hide the tolerance.)
    """
    return name == "auto" or (
        name in ("picard", "damped") and constraint.contracts and dtype == "float64"
    )


def problem(constraint, activation, dtype, seed=0):
    """Inside the set, and outside the ball of the infinity norm where the set allows that."""
    rng = np.random.default_rng(seed)
    A = (2.0 * rng.normal(size=(N, N))).astype(dtype)
    A = constraint.project({**AROUND, "A": A}, activation)["A"]
    params = {"A": A, "B": np.zeros((N, 1), dtype), "C": np.zeros((1, N), dtype)}
    matrix = read_model(params, None, None, doubtful=not constraint.contracts)["A"]
    if constraint.metric is not None:
        matrix = replace(matrix, metric=constraint.metric)
    return Affine(
        matrix, rng.normal(size=(7, N)).astype(dtype), activation
    ), constraint.certificate({**AROUND, "A": A}, activation)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("constraint", [c for c in CONSTRAINTS if c != Unconstrained()], ids=repr)
def test_all_solvers_find_the_same_point(constraint, activation, dtype):
    if constraint.refusal(activation):
        pytest.skip("the constraint refuses the activation, which has a test of its own")
    p, certificate = problem(constraint, activation, dtype)
    A, Z = p.matrix.dense().astype(float), p.offset.astype(float)

    def residual(x):
        x = host(x).astype(float)
        return activation.phi(x @ A.T + Z) - x

    fine = Auto()(Affine(with_gains(Full(A, metric=constraint.metric)), Z, activation))
    assert fine.converged.all()
    slack = certificate.entrywise(residual(fine.value))
    full = Affine(Full(p.matrix.dense()), p.offset, activation)
    q = adjoint(full, fine, np.random.default_rng(1).normal(size=(7, N)))
    exact = adjoint_solution(q)
    for name in ADJOINT:
        if name in FORWARD and splits(name, full):
            s = FORWARD[name](p if name == "auto" else full)
            assert s.converged.all() or not must_converge(name, constraint, dtype), name
            done = s.converged
            apart = np.abs(host(s.value).astype(float) - fine.value)
            allowed = certificate.entrywise(residual(s.value)) + slack
            assert np.all((apart <= allowed * (1 + 1e-6) + 1e-12)[done]), name
        if splits(name, q):
            v = ADJOINT[name](q)
            assert v.converged.all() or not (
                name in ("direct", "gmres") or must_converge(name, constraint, dtype)
            ), name
            size = np.abs(exact).max(axis=1, keepdims=True)
            gain = np.linalg.norm(
                np.linalg.inv(np.eye(N) - host(q.map.S).astype(float)[:, :, None] * A.T),
                np.inf,
                axis=(1, 2),
            )[:, None]
            error = np.abs(host(v.value) - exact)
            assert np.all(
                (error <= gain * (v.residual[:, None] + 64 * np.finfo(dtype).eps * size) + 1e-12)[
                    v.converged
                ]
            ), name


def test_where_picard_diverges_the_set_says_so():
    """The broken twin of the rule above.

    In the sets that do not contract, Picard does fail, and Auto does not.
    """
    failed = 0
    for constraint in (c for c in CONSTRAINTS if not c.contracts and c != Unconstrained()):
        p, _ = problem(constraint, activations.relu, "float64", seed=3)
        failed += not Picard(max_iter=300)(
            Affine(Full(p.matrix.dense()), p.offset, p.map.activation)
        ).converged.all()
        assert Auto()(p).converged.all()
    assert failed > 0


def test_no_solver_passes_by_never_converging():
    """Each reaches the point in most of the sets that it serves."""
    counts = {name: [] for name in FORWARD}
    for constraint in CONSTRAINTS:
        p, _ = problem(constraint, activations.relu, "float64")
        full = Affine(Full(p.matrix.dense()), p.offset, p.map.activation)
        for name, solver in FORWARD.items():
            if constraint != Unconstrained() and splits(name, full):
                counts[name].append(solver(full).converged.mean())
    assert all(np.mean(shares) > 0.5 for shares in counts.values()), counts
