"""Bounds against exact arithmetic, without any tolerance; and what is broken on purpose.

Fractions solve two kinds of models: triangular ones, unit by unit, and those of the
identity, by elimination. Each twin below has one fault, and the same check that passes
for the code as it is must see it.
"""

import functools
import importlib
from dataclasses import replace
from types import SimpleNamespace

import boxes
import numpy as np
import pytest
from boxes import equation, model_of, offsets, true_ends
from conditions import EXACT, cancelling
from hypothesis import given
from hypothesis import strategies as st

from pyidl import (
    ImplicitModel,
    ImplicitRNN,
    Linear,
    Residual,
    Sequential,
    activations,
    robustness,
)
from pyidl.certify import forms
from pyidl.robustness import embedded, recurrent, slopes, states
from pyidl.wellposed import SpectralNorm, StrictlyTriangular, Unconstrained

N, P, Q = 4, 3, 3

PIECES = {
    "relu": lambda y: max(y, 0 * y),
    "abs": abs,
    "identity": lambda y: y,
    "hard_tanh": lambda y: min(max(y, y - y - 1), y - y + 1),
}


def solved(A, z, phi):
    """``x = phi(A x + z)`` of fractions; A triangular, or phi the identity."""
    n = len(z)
    if phi == "identity":
        K = np.where(np.eye(n) > 0, 1, 0) - A
        K = np.concatenate([K, np.array(z, object)[:, None]], axis=1)
        for i in range(n):
            pivot = next(k for k in range(i, n) if K[k, i] != 0)
            K[[i, pivot]] = K[[pivot, i]]
            K[i] = K[i] / K[i, i]
            for k in range(n):
                if k != i:
                    K[k] = K[k] - K[k, i] * K[i]
        return K[:, -1]
    x = np.array([0 * v for v in z], object)
    order = range(n) if not np.any(np.triu(A != 0)) else reversed(range(n))
    for i in order:
        x[i] = PIECES[phi](A[i] @ x + z[i])
    return x


def exact_parts(model):
    p = {key: EXACT(a) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    return p, A


def answered(model, u):
    """``(x, A x + z, y)`` of one input of fractions."""
    p, A = exact_parts(model)
    z = p["B"] @ u + p.get("b", 0)
    x = solved(A, z, model.activation.name)
    y = p["C"] @ x + p.get("d", 0)
    return x, A @ x + z, y + p["D"] @ u[: p["D"].shape[1]] if "D" in p else y


def rough(rng, shape, spread=8):
    """Numbers of many magnitudes: sums of them round."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-spread, spread, size=shape)


def drawn(rng, phi, spread):
    """A model whose sums round and cancel, with an exact solution."""
    if phi == "identity" and rng.random() < 0.5:
        rank = 2
        params = cancelling(rng, 0.1, n=N)
        if "L" in params:
            rank = params["L"].shape[1]
    else:
        rank = None
        A = 0.5 * rng.normal(size=(N, N)) / N if phi == "identity" else rng.normal(size=(N, N))
        params = {"A": A if phi == "identity" else np.triu(A, 1)}
    model = ImplicitModel(
        P,
        Q,
        N,
        rank=rank if "L" in params else None,
        activation=getattr(activations, phi),
        constraint=Unconstrained() if phi == "identity" else StrictlyTriangular(),
        dtype="float64",
        rng=0,
    )
    more = {"B": (N, P), "C": (Q, N), "D": (Q, P), "b": (N,), "d": (Q,)}
    model.params = {
        **model.params,
        **{key: rough(rng, shape, spread) for key, shape in more.items()},
        **params,
    }
    return model


def outside(exact, pair, i):
    """How many of the exact values lie outside of row i of bounds."""
    low, high = (np.where(np.isfinite(a[i]), a[i], np.sign(a[i]) * 1e308) for a in pair)
    return int(np.count_nonzero(~((EXACT(low) <= exact) & (exact <= EXACT(high)))))


def exactly_outside(model, lo, hi, methods=("box", "affine")):
    """Violations of all bounds at corners and at the ends of boxes, exactly."""
    rng, total = np.random.default_rng(0), 0
    for method in methods:
        found = robustness.bounds(model, lo, hi, method=method, rounds=2)
        margins = [
            robustness.margins(model, lo, hi, np.full(len(lo), k), method=method, rounds=2)
            for k in range(Q)
        ]
        for i in range(len(lo)):
            for _ in range(3):
                u = EXACT(np.where(rng.random(P) < 0.5, lo[i], hi[i]))
                x, pre, y = answered(model, u)
                total += outside(x, found.states, i) + outside(pre, found.pre, i)
                total += outside(y, found.outputs, i)
                for k, V in enumerate(margins):
                    total += outside(y - y[k], (np.full_like(V, -np.inf), V), i)
    return total


def rounded(seed, phi, point):
    rng = np.random.default_rng(seed)
    spread = float(rng.choice([0.0, 2.0, 8.0]))
    model, lo = drawn(rng, phi, spread), rough(rng, (2, P), spread)
    hi = lo if point else lo + np.abs(rough(rng, lo.shape, spread)) * rng.choice([1e-16, 1.0])
    return exactly_outside(model, lo, hi)


@pytest.mark.parametrize("phi", PIECES)
@pytest.mark.parametrize("point", [True, False])
@boxes.FEW
@given(seed=st.integers(0, 10**6))
def test_exact_solutions_lie_inside_to_the_last_bit(phi, point, seed):
    assert rounded(seed, phi, point) == 0


@boxes.FEW
@given(seed=st.integers(0, 10**6))
def test_layers_in_exact_arithmetic(seed):
    rng = np.random.default_rng(seed)
    inner = Sequential(
        Linear(P, 4, rng=0, dtype="float64"),
        activations.relu,
        Residual(Linear(4, 4, rng=1, dtype="float64"), activations.abs),
        Linear(4, P, rng=2, dtype="float64"),
    )
    model = Residual(inner)
    model.params = {key: rough(rng, a.shape, 3) for key, a in model.params.items()}
    lo = rough(rng, (2, P), 3)
    hi = lo + np.abs(rough(rng, lo.shape, 3)) * rng.choice([0.0, 1e-16, 1.0])
    p = {key: EXACT(a) for key, a in model.params.items()}
    W = [(p[f"0.{i}.W"], p[f"0.{i}.b"]) for i in ("0", "2.0", "3")]
    for method in ("box", "affine"):
        found = robustness.bounds(model, lo, hi, method=method)
        labels = np.array([0, 2])
        margins = robustness.margins(model, lo, hi, labels, method=method)
        for i in range(2):
            for _ in range(4):
                u = EXACT(np.where(rng.random(P) < 0.5, lo[i], hi[i]))
                v = W[0][0] @ u + W[0][1]
                v = np.where(v > 0, v, 0 * v)
                v = v + abs(W[1][0] @ v + W[1][1])
                y = u + W[2][0] @ v + W[2][1]
                assert outside(y, found.outputs, i) == 0
                below = np.full_like(margins, -np.inf)
                assert outside(y - y[labels[i]], (below, margins), i) == 0


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@boxes.FEW
@given(seed=st.integers(0, 10**6))
def test_recurrences_in_exact_arithmetic(pool, seed):
    rng, T, r = np.random.default_rng(seed), 3, 2
    model = ImplicitRNN(
        P, Q, r, 3, pool=pool, activation=activations.identity, dtype="float64", rng=0
    )
    params = {key: rough(rng, a.shape, 1) for key, a in model.params.items()}
    model.params = {**params, "A": 0.1 * rng.normal(size=(3, 3))}
    lo = rough(rng, (2, T, P), 1)
    hi = lo + np.abs(rough(rng, lo.shape, 1)) * rng.choice([0.0, 1e-16, 1.0])
    p = {key: EXACT(a) for key, a in model.params.items()}
    for method in ("box", "affine"):
        found = robustness.bounds(model, lo, hi, [3, 2], method=method)
        for i, steps in enumerate((3, 2)):
            h, H = EXACT(np.zeros(r)), []
            for t in range(steps):
                corner = np.where(rng.random(P) < 0.5, lo[i, t], hi[i, t])
                u = np.concatenate([EXACT(corner), h])
                x = solved(p["A"], p["B"] @ u + p["b"], "identity")
                h = p["C"] @ x + p["D"] @ u + p["d"]
                H.append(h)
            H = np.array(H, object)
            R = {"last": H[-1], "mean": H.sum(axis=0) / steps, "max": H.max(axis=0)}[pool]
            assert outside(p["E"] @ R + p["e"], found.outputs, i) == 0


# ------------------------------------------------------------------- broken on purpose


def sampled():
    """Violations that an adversary finds, of boxes and of affine forms."""
    total = 0
    for kind in ("relu measure", "silu", "blocks"):
        for seed in range(2):
            rng, model = np.random.default_rng(seed), boxes.drawn(kind, 6, seed)
            lo, hi = boxes.boxes(rng, 3, 3, 1.0)
            labels = rng.integers(0, 3, 3)
            _, values, slack = boxes.attained(model, lo, hi, rng, count=20)
            for method in ("box", "affine"):
                found = robustness.bounds(model, lo, hi, method=method)
                margins = robustness.margins(model, lo, hi, labels, method=method)
                bad = boxes.violations(model, found, margins, labels, values, slack)
                total += sum(bad.values())
    return total


def in_fractions():
    """Violations of single inputs, where nothing but rounding is left."""
    return sum(rounded(seed, phi, True) for phi in ("relu", "identity") for seed in range(8))


def of_disturbed_answers():
    """Ends of the embedded model that a rough answer of it is not widened to."""
    total, rng = 0, np.random.default_rng(0)
    A = 0.24 * np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1.0]])
    model = model_of(A, np.eye(4), b=10 * np.ones(4), constraint=SpectralNorm(0.97))
    lo, hi = np.full((1, 4), -0.1), np.full((1, 4), 0.1)
    X, known, z = true_ends(model, lo, hi), equation(model), offsets(model, lo, hi)
    shift = 0.025 * np.repeat([-1.0, 1.0], 4)
    for off in (-shift, shift, 0.01 * rng.normal(size=8)):
        x, _ = known.verified(X + off, z)
        total += np.count_nonzero(x.lo > X[:, :4] + 1e-12)
        total += np.count_nonzero(x.hi < X[:, 4:] - 1e-12)
    return total


def wider_than_by_the_mean_value():
    """Ends further out than what the comparison matrix says of the centre."""
    total = 0
    for seed in range(3):
        rng, n = np.random.default_rng(seed), 4
        A = 0.2 * rng.normal(size=(n, n)) - 6.0 * np.eye(n)
        B, (lo, hi) = rng.normal(size=(n, 2)), boxes.boxes(rng, 3, 2, 1.0)
        model = model_of(A, B, b=np.ones(n))
        beside = np.abs(A) - np.diag(np.abs(np.diagonal(A)) - np.diagonal(A))
        e = np.linalg.solve(np.eye(n) - beside, (0.5 * (hi - lo) @ np.abs(B).T).T).T
        centre = model.predict(0.5 * (lo + hi))
        found = robustness.bounds(model, lo, hi, method="box")
        total += np.count_nonzero(found.states[0] < centre - e - 1e-6)
        total += np.count_nonzero(found.states[1] > centre + e + 1e-6)
    return total


MODULES = (importlib.import_module("pyidl.robustness.bounds"), forms, recurrent, slopes, states)


def everywhere(monkeypatch, name, change):
    """Replace a name in every module of the wing that has it."""
    there = [module for module in MODULES if hasattr(module, name)]
    assert there
    for module in there:
        monkeypatch.setattr(module, name, change(getattr(module, name)))


def inward(monkeypatch):
    """Ends are moved to the wrong side."""

    def turned(_):
        return lambda low, high, off: (low + off, high - off)

    everywhere(monkeypatch, "outward", turned)


def unrounded(monkeypatch):
    """No rounding is counted."""
    everywhere(monkeypatch, "outward", lambda _: lambda low, high, off: (low - off, high + off))
    everywhere(monkeypatch, "up", lambda _: lambda a, terms: a)
    everywhere(monkeypatch, "EPS", lambda _: 0.0)


def diagonal_into_N(monkeypatch):
    monkeypatch.setattr(embedded, "rising", lambda A, phi=None: np.zeros_like(A))


def nominal_certificate(monkeypatch):
    verified = states.States.verified

    def by_certificate(self, X, z):
        own = SimpleNamespace(error=self.certificate().entrywise)
        return verified(replace(self, weights=own), X, z)

    monkeypatch.setattr(states.States, "verified", by_certificate)


def no_widening(monkeypatch):
    monkeypatch.setattr(states.Weights, "error", lambda self, r: r)


def swapped(monkeypatch):
    """x_lo is the image of the upper end."""
    everywhere(monkeypatch, "ranged", lambda ranged: lambda *args: ranged(*args)[::-1])


def parts_swapped(monkeypatch):
    """M stands where N belongs, the diagonal apart."""
    everywhere(
        monkeypatch,
        "split",
        lambda split: lambda A, phi=None: (A - np.maximum(A, 0), np.maximum(A, 0)),
    )


def of_lines(change):
    def patch(monkeypatch):
        everywhere(monkeypatch, "lines", lambda lines: lambda *args: change(*lines(*args)))

    return patch


def no_residual_of_H(monkeypatch):
    """H is 0, so that ``|I - H J|`` is the one product that is left."""
    inverse = np.linalg.inv
    times = states._times

    def without(H, v):
        eye = np.broadcast_to(np.eye(H.shape[-1]), H.shape)
        return 0.0 * v if np.array_equal(H, eye) else times(H, v)

    monkeypatch.setattr(np.linalg, "inv", lambda J: inverse(J) if J.ndim < 3 else 0.0 * J)
    monkeypatch.setattr(states, "_times", without)


TWINS = {
    "the diagonal in N": (diagonal_into_N, wider_than_by_the_mean_value),
    "inward rounding": (inward, in_fractions),
    "no rounding": (unrounded, in_fractions),
    "the nominal certificate": (nominal_certificate, of_disturbed_answers),
    "no widening": (no_widening, of_disturbed_answers),
    "x_lo and x_hi swapped": (swapped, sampled),
    "M and N swapped": (parts_swapped, sampled),
    "rho halved": (of_lines(lambda D, k, rho: (D, k, 0.5 * rho)), sampled),
    "k forgotten": (of_lines(lambda D, k, rho: (D, 0.0 * k, rho)), sampled),
    "the residual of H left out": (no_residual_of_H, sampled),
}


@functools.cache
def seen_in_the_code_as_it_is(check):
    return check()


@pytest.mark.parametrize("name", TWINS)
def test_a_fault_is_seen(name, monkeypatch):
    fault, check = TWINS[name]
    assert seen_in_the_code_as_it_is(check) == 0
    fault(monkeypatch)
    assert check() > 0
