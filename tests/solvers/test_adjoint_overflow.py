"""Adjoint equations that are large: products that overflow, and matrices of large norm."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from pyidl.matrices.full import Full
from pyidl.solvers import GMRES, Direct, Status
from pyidl.solvers.image import Times
from pyidl.solvers.problem import Affine


def test_a_large_skew_matrix_in_single_precision():
    """``|A| = 54``, ``|(I - A)^-1| <= 1``.

    What is solved for is accurate, and one more step would not be.
    """
    failed = {"direct": 0, "gmres": 0, "both": 0}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        K = rng.normal(size=(40, 40))
        K -= K.T
        A, g = (54 * K / np.linalg.norm(K, 2)).astype("f4"), rng.normal(size=(18, 40)).astype("f4")
        q = Affine(Full(A.T.copy()), g, Times(np.ones_like(g)), np.abs(g).max(axis=1).astype(float))
        exact = np.linalg.solve(np.eye(40) - A.T.astype(float), g.T.astype(float)).T
        gmres, direct = GMRES(restart=40)(q), Direct()(q)
        for s in (gmres, direct):
            assert np.abs(s.value - exact)[s.converged].max() <= 3e-6 * np.abs(g).max()
            np.testing.assert_allclose(s.pre, q.pre(s.value), rtol=0, atol=1e-5)
        failed["direct"] += np.count_nonzero(~direct.converged)
        failed["gmres"] += np.count_nonzero(~gmres.converged)
        failed["both"] += np.count_nonzero(~direct.converged & ~gmres.converged)
    assert failed["both"] == failed["direct"] == 0, failed
    assert failed["gmres"] <= 0.05 * 180, failed


def linear(A, *slopes):
    """A sample for each slope, with cotangents 1."""
    S = np.repeat(np.array(slopes, "f4")[:, None], len(A), axis=1)
    return Affine(Full(A), np.ones_like(S), Times(S), np.abs(S).max(axis=1).astype(float))


def test_gmres_where_squares_overflow():
    A = np.array([[0.0, -1e25], [1e25, 0.0]], "f4")
    s = GMRES()(linear(A, 1.0, 0.5))
    assert s.converged.all()
    exact = np.linalg.solve(np.eye(2) - A.astype(float), np.ones(2))
    assert np.abs(s.value - exact).max() < 1e-5 * np.abs(exact).max()


def test_gmres_where_products_overflow():
    s = GMRES()(linear(np.full((3, 3), 3e38, "f4"), 1.0, 1e-39, 0.0))
    assert s.status.tolist() == [Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
    assert np.all(np.isfinite(s.value))


HANGS = """
import numpy as np, warnings, pyidl
from pyidl.errors import ConvergenceError
warnings.simplefilter("ignore")
head = pyidl.ImplicitAttentionHead(3, 4, block_size=5, rng=0)
Y, pull = head(1e18 * np.random.default_rng(0).normal(size=(2, 5, 3)), on_fail="ignore")
dU, grads = pull(np.ones(Y.shape))
print("returned")
"""


def test_a_backward_pass_returns():
    options = {"capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", HANGS], **options)
    assert done.stdout.strip() == "returned", done.stderr
