r"""Parts side by side, closed by a wiring, are one implicit model.

    x = phi(A x + B w + b),    y = C x + D w + d      the parts, stacked
    w = K y + E u + k,         z = F y + H u + f      the wiring

A, B, C, D are block diagonal, x, w, y, b, d stacked. With ``R = (I - D K)^{-1}``

    y = R (C x + D (E u + k) + d),    w = K y + E u + k

are known once x and u are, and the whole is a model with the same states and phi:

    A' = A + B K R C    B' = B (E + K R D E)    b' = b + B (k + K R (D k + d))
    C' = F R C          D' = F R D E + H        d' = F R (D k + d) + f

x solves it if and only if (x, w, y) solves the loop. Where I - D K is singular, the
loop through the D has no answer for given x, or many.

**Kept joints.** Some of the y may stay, as states with the identity as activation: y_J
= its row of ``C x + D w + d``. With the columns J of K taken out of K and read as
inputs, ``w = (K - K_J) y + K_J y_J + E u + k``, this is the same formula. A thin joint
between wide parts then costs q (n1 + n2) entries of A instead of n1 n2.

**Order.** What is solved last is listed first, as in the papers: A is block upper
triangular, one block for each part or loop.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 2 (cascade, parallel, sum, feedback); the one formula, the
kept joints and the gradients: derived here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pyidl import activations
from pyidl.activations import Activation
from pyidl.activations.base import joint
from pyidl.arrays.backend import as_real, from_host, frozen, is_array, namespace, to_numpy
from pyidl.compose.gains import chain_certificate, closed_gain, gain_of, plus, times
from pyidl.compose.sets import set_of
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern, components
from pyidl.typing import Array, Grads
from pyidl.wellposed import Certificate, Constraint, StrictlyTriangular

__all__ = ["Interconnection"]

CURE = "give ImplicitModels; compose.to_implicit makes one of a network"


@dataclass(frozen=True, eq=False)
class Interconnection:
    """Models side by side, closed by ``w = K y + E u + k``, read by ``F y + H u + f``.

    w (P,) are the inputs of all parts, one part after the other, y (Q,) their outputs,
    u (p,) and z (q,) those of the whole. `model` is the whole as one `ImplicitModel`;
    `gradients` leads from its gradients back to those of the parts.

    Everything is computed on the host in float64 and rounded once, to the dtype of the
    parts; the result is where they are.

    Parameters
    ----------
    parts : sequence of ImplicitModel
        Of one dtype, on one device.
    loop : array, shape (P, Q), optional
        K: what the parts give each other. None for nothing.
    inputs : array, shape (P, p), optional
        E. Default: the identity, p = P.
    outputs : array, shape (q, Q), optional
        F. Default: the identity, q = Q.
    direct : array, shape (q, p), optional
        H. Default: zero.
    offset, shift : array, shapes (P,) and (q,), optional
        k and f. Default: zero.
    keep : bool, optional
        Whether outputs that other parts read stay as states. None: where that leaves
        fewer nonzero entries, and no loop passes, which kept joints make harder to
        certify.
    constraint : Constraint, optional
        Of the model. Default: `BlockTriangular`, with the set of each part on its
        block; for a loop, or a part whose set is about more than A,
        `PerronFrobenius` if the block lies in it, else `Unconstrained`.

    Raises
    ------
    InputError
        If a part is no `ImplicitModel`, parts differ in dtype, or a shape does not fit.
    DeviceMismatchError
        If the parts are in different places.

    Examples
    --------
    A model that hears a tenth of its own output:

    >>> from pyidl import ImplicitModel
    >>> part = ImplicitModel(2, 2, 5, dtype="float64", rng=0)
    >>> echo = Interconnection((part,), loop=0.1 * np.eye(2))
    >>> U = np.ones((1, 2))
    >>> Y, pull = echo.model()(U)
    >>> bool(np.allclose(Y, part.predict(U + 0.1 * Y)))
    True
    >>> (of_part,) = echo.gradients(pull(np.ones((1, 2)))[1])
    >>> sorted(of_part)
    ['A', 'B', 'C', 'D', 'b', 'd']
    """

    parts: tuple[ImplicitModel, ...]
    loop: Any = None
    inputs: Any = None
    outputs: Any = None
    direct: Any = None
    offset: Any = None
    shift: Any = None
    keep: bool | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        expect("parts", self.parts, Iterable, CURE)
        parts = tuple(self.parts)
        if not parts:
            raise InputError(f"parts is empty; {CURE}")
        for i, part in enumerate(parts):
            expect(f"parts[{i}]", part, ImplicitModel, CURE)
        if len({part.dtype for part in parts}) != 1:
            raise InputError(
                f"parts have the dtypes {[part.dtype for part in parts]}; one for all is needed: "
                'part.astype("float64")'
            )
        namespace(*(part.params["C"] for part in parts))
        expect("keep", self.keep, (bool, NoneType), "use True, False or None")
        cure = "use one of pyidl.wellposed, or None"
        expect("constraint", self.constraint, (Constraint, NoneType), cure)
        P, Q = (sum(part.input_dim for part in parts), sum(part.output_dim for part in parts))
        E = as_matrix("inputs", self.inputs, (P, None), np.eye(P))
        F = as_matrix("outputs", self.outputs, (None, Q), np.eye(Q))
        p, q = E.shape[1], F.shape[0]
        found = {
            "parts": parts,
            "loop": as_matrix("loop", self.loop, (P, Q), np.zeros((P, Q))),
            "inputs": E,
            "outputs": F,
            "direct": as_matrix("direct", self.direct, (q, p), np.zeros((q, p))),
            "offset": as_matrix("offset", self.offset, (P,), np.zeros(P)),
            "shift": as_matrix("shift", self.shift, (q,), np.zeros(q)),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def model(self) -> ImplicitModel:
        """The whole as one implicit model, for the parts' present parameters.

        Returns
        -------
        ImplicitModel
            With p inputs, q outputs, and the states of all parts, perhaps joints among
            them. Its solvers are the default ones. It has a pattern if a part has one.

        Raises
        ------
        InputError
            If ``I - D K`` is singular, or within rounding of it: the parts on that loop
            are named.
        """
        return self._built()[0]

    def gradients(self, grads: Mapping[str, Array]) -> tuple[Grads, ...]:
        """The gradients of the parts' parameters, from those of the whole.

        Parameters
        ----------
        grads : mapping
            By name, as a pullback of `model` returns them.

        Returns
        -------
        tuple of dict
            For each part: an array for each of its parameters, zero outside its
            pattern.

        Raises
        ------
        InputError
            If an array of `grads` has not the shape of the parameter.

        Notes
        -----
        The parts must have the parameters for which `model` was called. Source: derived
        here.
        """
        closed = self._closed()
        G, M, order = _read(grads, closed.whole), closed.stack, closed.order
        n, N, width = len(M.A), len(order), closed.W.shape[1]
        states, out = np.empty((N, width)), np.empty((len(G["C"]), width))
        states[np.ix_(order, order)] = G["A"]
        states[order, N:-1], states[order, -1] = G["B"], G["b"]
        out[:, order], out[:, N:-1], out[:, -1] = G["C"], G["D"], G["d"]
        # Rows of states and outputs are Z, Y_J and F Y. With <., .> the sum of products,
        #     dZ = [dA 0 db] + dB W + B dW,  dW = K dY,  dY = R ([dC 0 dd] + dD W),
        # since dY = [dC 0 dd] + dD W + D K dY. Hence <Vx, dZ> + <Vy, dY> is
        #     <Vx, [dA 0 db] + dB W> + <V, [dC 0 dd] + dD W>,  V = R^T (Vy + K^T B^T Vx).
        Vx, Vy = states[:n], self.outputs.T @ out
        Vy[closed.joints] += states[n:]
        V = closed.R.T @ (Vy + closed.rest.T @ (M.B.T @ Vx))
        found = []
        for part, x, w, y in zip(self.parts, *self._places(), strict=True):
            A, W = Vx[x, x], closed.W[w]
            of = {"A": A, "B": Vx[x] @ W.T, "C": V[y, x], "D": V[y] @ W.T}
            of |= {"b": Vx[x, -1], "d": V[y, -1]}
            if part.rank is not None:  # A = L R^T
                of |= {"L": A @ _host(part, "R"), "R": A.T @ _host(part, "L")}
            masks = {key: part.support(key) for key in part.params}
            inside = {key: of[key] if m is None else of[key] * m for key, m in masks.items()}
            found.append({k: from_host(part.xp, a.astype(part.dtype)) for k, a in inside.items()})
        return tuple(found)

    def gain(self) -> np.ndarray:
        """How far outputs can move: ``|dz| <= Gamma |du|``, entry by entry, proven.

        By the small gain theorem, from the gains of the parts, in real arithmetic and
        for the parts as they are. A model alone is a wiring of one part.

        Returns
        -------
        numpy.ndarray, shape (q, p)
            float64, rounded up.

        Raises
        ------
        InputError
            If a part is not certified, or the spectral radius of the gains times
            ``|K|`` is not shown to be below 1.

        Notes
        -----
        Source: derived here, see `pyidl.compose.gains`; small gain is classical.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> part = ImplicitModel(1, 1, 1, activation="tanh", dtype="float64", rng=0)
        >>> half, one, zero = np.full((1, 1), 0.5), np.ones((1, 1)), np.zeros((1, 1))
        >>> part.params = {**part.params, "A": half, "B": one, "C": half, "D": zero}
        >>> Interconnection((part,)).gain().round(6)  # 0.5 / (1 - 0.5)
        array([[1.]])
        >>> Interconnection((part,), loop=half).gain().round(6)
        array([[2.]])
        """
        own = [gain_of(part, f"parts[{i}]") for i, part in enumerate(self.parts)]
        moved = closed_gain(_block_diagonal(own), self.loop, self.inputs)
        gamma = times(np.abs(self.outputs), moved)
        return plus(gamma, np.abs(self.direct))

    def certificate(self) -> Certificate:
        """Picard's factor for `model`, in a norm with weights made part by part.

        Where no weights show that absolute values contract, the certificate of the
        model itself, which knows other conditions.

        Returns
        -------
        Certificate
            Of the model's equation ``x = phi(A x + B u + b)``.

        Raises
        ------
        InputError
            As `model`.

        Notes
        -----
        Source: derived here, see `pyidl.compose.gains`.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> parts = tuple(ImplicitModel(2, 2, 5, rng=i) for i in range(2))
        >>> chain = np.kron([[0, 0], [1000, 0]], np.eye(2))  # 1000 times the first
        >>> bool(Interconnection(parts, loop=chain).certificate().contraction < 1)
        True
        """
        model, closed = self._built()
        sizes = [len(piece.states) for piece in closed.plan]
        proof = chain_certificate(model.params, model.activation, sizes)
        return proof if proof.proven else model.certificate()

    # ------------------------------------------------------------------ how it is built

    def _built(self) -> tuple[ImplicitModel, _Closed]:
        closed, first, parts = self._closed(), self.parts[0], self.parts
        whole, phi = closed.whole, joint(phi for piece in closed.plan for phi in piece.phis)
        wiring = tuple(np.where(a == 0, 0.0, 1.0) for a in self._wiring())
        support = _close(self._stack(_support), wiring, closed.joints, closed.plan, _reach).whole
        masks = {key: support[key] > 0 for key in "ABCD"}
        blocks = [(piece.phis, piece.constraint) for piece in closed.plan]
        constraint = self.constraint or set_of(blocks, whole["A"])
        pattern, feedthrough = None, bool(masks["D"].any())
        if any(part.pattern is not None for part in parts):
            moved = () if constraint.keeps_zeros else constraint.projects
            free = {*moved, *("" if feedthrough else "D")}
            pattern = Pattern(**{key: None if key in free else masks[key] for key in "ABCD"})
        config = {
            **first._config(),
            "input_dim": whole["B"].shape[1],
            "output_dim": len(whole["C"]),
            "hidden_dim": len(whole["A"]),
            "activation": phi,
            "constraint": constraint,
            "rank": None,
            "pattern": pattern,
            "bias": any(part.bias for part in parts) or any(whole[key].any() for key in "bd"),
            "feedthrough": feedthrough,
            "forward": None,
            "adjoint": None,
            "sparse_below": max(part.sparse_below for part in parts),
        }
        names = ["A", "B", "C", *("D" if feedthrough else ""), *("bd" if config["bias"] else "")]
        with np.errstate(over="ignore"):  # what overflows is refused by name
            params = {key: from_host(first.xp, whole[key].astype(first.dtype)) for key in names}
        return ImplicitModel._with(config, params), closed

    def _wiring(self) -> tuple[np.ndarray, ...]:
        return self.loop, self.inputs, self.offset, self.outputs, self.direct, self.shift

    def _closed(self) -> _Closed:
        """Multiplied out, or with joints kept."""
        label, _, cyclic = components(self._feeds())
        on_loop = np.repeat(cyclic[label], [part.output_dim for part in self.parts])
        read, none = self.loop.any(axis=0), np.zeros(0, int)
        quiet = np.flatnonzero(read & ~on_loop)
        either = [none, quiet] if len(quiet) else [none]
        choice = {True: [np.flatnonzero(read)], False: [none], None: either}
        stack, wiring = self._stack(_host), self._wiring()
        _resolvent(stack.D @ self.loop, self._solve)  # refused also where joints are kept
        found = [_close(stack, wiring, J, self._plan(J), self._solve) for J in choice[self.keep]]
        return min(found, key=_Closed.nonzeros)

    def _places(self) -> tuple[list[slice], list[slice], list[slice]]:
        """Where the states, inputs and outputs of the parts stand."""

        def places(widths: Iterable[int]) -> list[slice]:
            ends = itertools.accumulate(widths, initial=0)
            return [slice(a, b) for a, b in itertools.pairwise(ends)]

        widths = ((part.hidden_dim, part.input_dim, part.output_dim) for part in self.parts)
        x, w, y = map(places, zip(*widths, strict=True))
        return x, w, y

    def _feeds(self) -> np.ndarray:
        """Whether part i reads part j."""
        _, w, y = self._places()
        return np.array([[bool(self.loop[i, j].any()) for j in y] for i in w])

    def _stack(self, read: Callable[[ImplicitModel, str], np.ndarray]) -> _Stack:
        found = {key: [read(part, key) for part in self.parts] for key in "ABCDbd"}
        matrices = {key: _block_diagonal(found[key]) for key in "ABCD"}
        return _Stack(**matrices, **{key: np.concatenate(found[key]) for key in "bd"})

    def _plan(self, joints: np.ndarray) -> list[_Piece]:
        """The blocks of the state, what is solved last first."""
        xs, _, ys = self._places()
        n, plan = xs[-1].stop, []
        label, depth, cyclic = components(self._feeds())
        for c in sorted(range(len(depth)), key=lambda c: (-depth[c], np.argmax(label == c))):
            pieces = []
            for i in np.flatnonzero(label == c):
                part, x, y = self.parts[i], xs[i], ys[i]
                kept = n + np.flatnonzero((joints >= y.start) & (joints < y.stop))
                if len(kept):
                    phi = (activations.identity, len(kept))
                    pieces.append(_Piece(kept, [phi], StrictlyTriangular()))
                own = part.constraint if part.constraint.projects == ("A",) else None
                states = np.arange(x.start, x.stop)
                pieces.append(_Piece(states, [(part.activation, part.hidden_dim)], own))
            if cyclic[c]:
                states = np.concatenate([piece.states for piece in pieces])
                pieces = [_Piece(states, [piece.phis[0] for piece in pieces], None)]
            plan += pieces
        return plan

    def _solve(self, N: np.ndarray, right: np.ndarray, loop: np.ndarray) -> np.ndarray:
        """``(I - N)^{-1} right`` for a loop of outputs, refused where it is singular.

        The reciprocal condition is that for changes of N and I relative to their
        entries, ``1 / pf(|(I - N)^{-1}| (I + |N|))``: no units of the signals count.
        """
        one, eps = np.eye(len(N)), float(np.finfo(self.parts[0].dtype).eps)
        try:
            inverse = np.abs(np.linalg.inv(one - N))
            size = np.max(np.abs(np.linalg.eigvals(inverse @ (one + np.abs(N)))))
            reciprocal = 1.0 / float(size)
        except np.linalg.LinAlgError:
            reciprocal = 0.0
        if not reciprocal > 8 * len(N) * eps:  # not a digit of the answer would be right
            names = ", ".join(
                f"{i} ({part.input_dim} inputs, {part.output_dim} outputs)"
                for i, (part, y) in enumerate(zip(self.parts, self._places()[2], strict=True))
                if np.any((loop >= y.start) & (loop < y.stop))
            )
            raise InputError(
                f"the loop through the D of parts {names} has no answer, or many: I - D K has the "
                f"reciprocal condition {reciprocal:.2g} there; change that part of the loop, or "
                "give a part without feedthrough"
            )
        return np.linalg.solve(one - N, right)


# ----------------------------------------------------------------------------- its parts


class _Stack(NamedTuple):
    """The parts side by side."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    b: np.ndarray
    d: np.ndarray


class _Piece(NamedTuple):
    """A block of the state: of a part, of its kept joints, or of a loop.

    `states` are numbers among (x, y_J); the set is None where it is to be found.
    """

    states: np.ndarray
    phis: list[tuple[Activation, int]]
    constraint: Constraint | None


class _Closed(NamedTuple):
    """The wiring closed: W is what w is of (x, y_J, u, 1), with R as above.

    `rest` is K without the columns of the joints.
    """

    stack: _Stack
    joints: np.ndarray
    plan: list[_Piece]
    order: np.ndarray
    rest: np.ndarray
    R: np.ndarray
    W: np.ndarray
    whole: dict[str, np.ndarray]

    def nonzeros(self) -> int:
        """Of A, B, C and D; and a state costs about as much as an entry."""
        return len(self.order) + sum(int(np.count_nonzero(self.whole[key])) for key in "ABCD")


_Solve: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _close(
    M: _Stack, wiring: tuple[np.ndarray, ...], joints: np.ndarray, plan: list[_Piece], solve: _Solve
) -> _Closed:
    """The formula, for (x, y_J, u, 1) in the columns."""
    K, E, k, F, H, f = wiring
    n, p, order = len(M.A), E.shape[1], np.concatenate([piece.states for piece in plan])
    N = len(order)

    def own(C: np.ndarray, d: np.ndarray) -> np.ndarray:
        return np.hstack([C, np.zeros((len(C), N - n + p)), d[:, None]])

    rest = K.copy()
    rest[:, joints] = 0.0
    R = _resolvent(M.D @ rest, solve)
    given = np.hstack([np.zeros((len(K), n)), K[:, joints], E, k[:, None]])
    Y = R @ (own(M.C, M.d) + M.D @ given)
    W = rest @ Y + given
    Z = own(M.A, M.b) + M.B @ W
    states, out = np.vstack([Z, Y[joints]])[order], F @ Y
    out[:, N:] += np.hstack([H, f[:, None]])
    whole = {"A": states[:, order], "B": states[:, N:-1], "C": out[:, order], "D": out[:, N:-1]}
    whole |= {"b": states[:, -1], "d": out[:, -1]}
    return _Closed(M, joints, plan, order, rest, R, W, whole)


def _resolvent(N: np.ndarray, solve: _Solve) -> np.ndarray:
    """``(I - N)^{-1}``, by substitution along N, loop by loop: zeros stay zeros."""
    label, depth, cyclic = components(N != 0)
    R = np.zeros_like(N)
    for level in range(int(depth.max()) + 1):
        rows = np.flatnonzero(depth[label] == level)
        R[rows] = N[rows] @ R  # of what is solved: all else is still zero
        R[rows, rows] += 1.0
        for c in np.flatnonzero((depth == level) & cyclic):
            loop = np.flatnonzero(label == c)
            R[loop] = solve(N[np.ix_(loop, loop)], R[loop], loop)
    return R


def _reach(N: np.ndarray, right: np.ndarray, loop: np.ndarray) -> np.ndarray:
    """The same for patterns: on a loop, each reaches all."""
    return np.broadcast_to(right.any(axis=0), right.shape)


def _shape(part: ImplicitModel, key: str) -> tuple[int, ...]:
    p, q, n = part.input_dim, part.output_dim, part.hidden_dim
    return {"A": (n, n), "B": (n, p), "C": (q, n), "D": (q, p), "b": (n,), "d": (q,)}[key]


def _host(part: ImplicitModel, key: str) -> np.ndarray:
    """A parameter in float64, on the host; zeros where there is none."""
    if key in part.params:
        return to_numpy(part.params[key]).astype(np.float64)
    return _host(part, "L") @ _host(part, "R").T if key == "A" else np.zeros(_shape(part, key))


def _support(part: ImplicitModel, key: str) -> np.ndarray:
    """Where a parameter may differ from zero: 1, else 0."""
    mask = part.support(key)
    if mask is None:
        return np.full(_shape(part, key), float(key == "A" or key in part.params))
    return mask.astype(np.float64)


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    from scipy.linalg import block_diag

    return np.asarray(block_diag(*blocks))


def as_matrix(
    name: str, value: Any, shape: tuple[int | None, ...], default: np.ndarray | None = None
) -> Any:
    """A matrix or vector of a wiring: float64, on the host, read-only."""
    if value is None and default is not None:
        return frozen(np, default)
    value = to_numpy(value) if is_array(value) else value
    a: Any = as_real(value, name=name, xp=np, dtype="float64")
    fits = len(a.shape) == len(shape) and all(
        have == want or (want is None and have) for have, want in zip(a.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(
            f"{name} has shape {a.shape}; for these parts and this wiring it is ({wanted})"
        )
    return frozen(np, a)


def _read(grads: Any, whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of the whole in float64; zeros for a D, b or d that it lacks."""
    expect("grads", grads, Mapping, "give the gradients that a pullback of model() returns")
    found = {}
    for key, a in whole.items():
        if key in "ABC" and key not in grads:
            raise InputError(f"grads has no {key}; give those that a pullback of model() returns")
        found[key] = as_matrix(f"grads[{key!r}]", grads.get(key), a.shape, np.zeros(a.shape))
    return found
