"""Random recurrent networks, and oracles of their outputs and gradients in plain NumPy."""

import numpy as np
from helpers import host, moved, random_model

from pyidl import ImplicitRNN, Pattern, activations, solvers
from pyidl.activations import Blocks
from pyidl.arrays.backend import from_host

P, Q, R, N, M = 3, 2, 5, 8, 4

OPTIONS = {
    "default": {},
    "sequences": {"return_sequences": True},
    "mean": {"pool": "mean"},
    "max": {"pool": "max", "activation": activations.tanh, "timescale": 5},
    "D on the input": {"feedthrough": "input"},
    "no D": {"feedthrough": False},
    "no bias": {"bias": False, "return_sequences": True},
    "rank 2": {"rank": 2},
    "tanh": {"activation": activations.tanh, "return_sequences": True},
    "blocks": {"activation": Blocks((activations.silu, 3), (activations.relu, 5))},
    "no feedback": {
        "pattern": Pattern(A=np.zeros((N, N), bool)),
        "activation": activations.tanh,
        "feedthrough": False,
    },
    "patterns": {
        "pattern": Pattern(
            A=np.tri(N, k=-1) > 0,
            B=np.arange(N * (P + R)).reshape(N, P + R) % 3 > 0,
            D=np.eye(R, P + R) > 0,
        )
    },
    "cold, other solvers": {
        "warm_start": False,
        "forward": solvers.Newton(),
        "adjoint": solvers.Direct(),
    },
    "diagonal taken implicitly": {
        "forward": solvers.Jacobi(),
        "adjoint": solvers.Jacobi(),
        "return_sequences": True,
    },
}


def build(option="default", seed=0, **more):
    return random_model(
        ImplicitRNN,
        P,
        Q,
        R,
        N,
        seed=seed,
        spread=0.3,
        **{"dtype": "float64", **OPTIONS[option], **more},
    )


def inputs(T=7, m=M, seed=0):
    return np.random.default_rng(100 + seed).normal(size=(m, T, P))


def some_lengths(T, m=M):
    return 1 + (T - 1) * np.arange(m) // max(1, m - 1)


def parts(model):
    """Dense arrays: A, B, C, D on [U, H], b, d, E, e."""
    p = {key: host(a).astype(float) for key, a in model.params.items()}
    A = p["A"] if "A" in p else p["L"] @ p["R"].T
    D = np.zeros((R, P + R))
    if "D" in p:
        D[:, : p["D"].shape[1]] = p["D"]
    return A, p["B"], p["C"], D, p.get("b", 0.0), p.get("d", 0.0), p["E"], p.get("e", 0.0)


def weights(model, H, mask):
    """How much of H_t, (m, T, r), a single output reads, entry by entry; a sample at a time."""
    W = np.zeros_like(H)
    for i, row in enumerate(mask):
        own = np.flatnonzero(row)
        if model.pool == "last":
            W[i, own[-1]] = 1.0
        elif model.pool == "mean":
            W[i, own] = 1.0 / len(own)
        else:
            W[i, own[np.argmax(H[i, own], axis=0)], np.arange(R)] = 1.0
    return W


def run(model, U, mask, h0, tol=1e-15):
    """The recurrence in plain NumPy, each equation iterated until nothing moves.

    The output, what it is read from, every H with H_0 first, and every iterate.
    """
    A, B, C, D, b, d, E, e = parts(model)
    phi, h, history = model.activation.phi, h0, []
    H = [h0]
    for t in range(U.shape[1]):
        both = np.concatenate([U[:, t], h], axis=1)
        Z = both @ B.T + b
        x, states = np.zeros((len(U), N)), []
        for _ in range(3000):
            states.append(x)
            new = phi(x @ A.T + Z)
            done = np.max(np.abs(new - x)) <= tol * (1 + np.max(np.abs(new)))
            x = new
            if done:
                break
        # twice as long: the gradient converges too
        history.append((both, Z, [*states, *[x] * len(states)]))
        h = np.where(mask[:, t, None], x @ C.T + both @ D.T + d, h)
        H.append(h)
    H = np.stack(H, axis=1)
    seen = H[:, 1:]
    if not model.return_sequences:
        seen = np.sum(weights(model, seen, mask) * seen, axis=1)
    return seen @ E.T + e, seen, H, history


def oracle(model, U, mask, h0, G, way):
    """Gradients by hand in plain NumPy.

    The inside of a step by a dense solve, or by the chain rule through all its
    iterates.
    """
    A, B, C, D, _, _, E, _ = parts(model)
    _, seen, H, history = run(model, U, mask, h0)
    m, T = mask.shape
    direct = G @ E  # (m, T, r), of every step; or of what a single output reads
    if not model.return_sequences:
        direct = weights(model, H[:, 1:], mask) * direct[:, None]
    dA, dB, dC, dD, db, dd = (np.zeros_like(a) for a in (A, B, C, D, np.zeros(N), np.zeros(R)))
    dU, g = np.zeros_like(U), np.zeros((m, R))
    for t in range(T - 1, -1, -1):
        g = g + direct[:, t]
        own = g * mask[:, t, None]
        both, Z, states = history[t]
        x = states[-1]
        gx, dZ = own @ C, np.zeros((m, N))
        if way == "dense":
            S = model.activation.dphi(x @ A.T + Z)
            dZ = np.stack(
                [np.linalg.solve(np.eye(N) - s[:, None] * A.T, s * row) for s, row in zip(S, gx)]
            )
            dA += dZ.T @ x
        else:
            for state in reversed(states):
                v = model.activation.dphi(state @ A.T + Z) * gx
                dA += v.T @ state
                dZ += v
                gx = v @ A
        dB += dZ.T @ both
        db += dZ.sum(axis=0)
        dC += own.T @ x
        dD += own.T @ both
        dd += own.sum(axis=0)
        back = dZ @ B + own @ D
        dU[:, t] = back[:, :P]
        g = np.where(mask[:, t, None], back[:, P:], g)
    rows, seen = G.reshape(-1, Q), seen.reshape(-1, R)
    grads = {
        "U": dU,
        "h0": g,
        "B": dB,
        "C": dC,
        "E": rows.T @ seen,
        "b": db,
        "d": dd,
        "e": rows.sum(axis=0),
    }
    p = {key: host(a) for key, a in model.params.items()}
    grads |= {"A": dA} if "A" in p else {"L": dA @ p["R"], "R": dA.T @ p["L"]}
    if "D" in p:
        grads["D"] = dD[:, : p["D"].shape[1]]
    masks = {key: model.support(key) for key in grads}
    return {
        key: grads[key] if masks[key] is None else grads[key] * masks[key]
        for key in ("U", "h0", *p)
    }


def problem(model, T, with_h0, ragged, seed=0):
    rng = np.random.default_rng(seed)
    U, lengths = inputs(T, seed=seed), some_lengths(T)
    mask = np.arange(T) < lengths[:, None] if ragged else np.ones((M, T), bool)
    h0 = rng.normal(size=(M, R)) if with_h0 else np.zeros((M, R))
    G = rng.normal(size=(M, T, Q) if model.return_sequences else (M, Q))
    return U, lengths if ragged else None, h0 if with_h0 else None, G, mask, h0


def by_pyidl(model, U, lengths, h0, G, xp):
    exact = moved(model, xp).with_tol(1e-14)
    Y, pull = exact(from_host(xp, U), lengths, None if h0 is None else from_host(xp, h0))
    d, grads = pull(from_host(xp, G))
    assert set(grads) == set(model.params)
    found = dict(grads)
    if lengths is None and h0 is None:
        found["U"] = d
    else:
        assert len(d) == 1 + (lengths is not None) + (h0 is not None)
        assert lengths is None or d[1] is None
        found["U"] = d[0]
        if h0 is not None:
            found["h0"] = d[-1]
    return Y, found
