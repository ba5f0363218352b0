r"""The implicit attention head.

Attention whose queries, keys and values hear its own output.

With U the tokens of a sample, one a row, and att one of the maps of `pyidl.attention`,

    X = att(K, Q, V),    [K Q V] = X R + U S,    Y = X (heads side by side).

R = 0 is attention as usual. A head in the four-block form, whose state holds K, Q, V
and X, is this one with other parameters (`pyidl.attention.fourblocks`). Derivation of
the gradients: `pyidl.attention.cell`; of the condition: `pyidl.attention.wellposed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from typing import Any

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.attention.cell import AttentionCell
from pyidl.attention.decoding import Cache, advance, begin
from pyidl.attention.maps import Attention, KernelAttention
from pyidl.attention.weighted_mean import Mask
from pyidl.attention.wellposed import AttentionBall, attention_certificate
from pyidl.equilibrium import DEFAULT_ADJOINT, EquilibriumPullback, solved
from pyidl.errors import InputError, expect, expect_flags
from pyidl.layers.base import Call, Layer, Pullback, check_dtype, check_width, missing_axis
from pyidl.layers.timeline import Timeline
from pyidl.layers.tolerance import in_words, solvers_at
from pyidl.solvers import Solution, Solver
from pyidl.solvers.base import check_solvers
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array, Grads, Params, Rng, Tol
from pyidl.wellposed import Unconstrained
from pyidl.wellposed.certificate import Certificate

__all__ = ["AttentionPullback", "ImplicitAttentionHead"]


@dataclass(frozen=True, repr=False)
class AttentionPullback(Pullback):
    """The derivative of the head; its equations stand below those of the forward pass.

    What it returns for the inputs mirrors them: dU, or ``(dU, None)`` where lengths
    were given.
    """

    backward: Callable[[Any, bool], tuple[Any, Grads]]
    equilibrium: EquilibriumPullback
    lengths: bool = field(default=False, kw_only=True)

    def __call__(self, dY: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """Return ``(dU, grads)``, as for every `Pullback`."""
        dU, grads = super().__call__(dY, inputs)
        return ((dU, None) if self.lengths and inputs else dU), grads

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """Call the closure that the forward pass left."""
        return self.backward(dY, inputs)

    @property
    def forward(self) -> Solution:
        """The forward solve: outputs of the heads (m, H, T, h), steps, residuals."""
        return self.equilibrium.forward

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solve, the only one."""
        return (self.forward,)

    def weights(self) -> Any:
        """The weights of the keys at the fixed point, (m, H, T, T).

        Row i holds those that query i gives. Formed on demand.
        """
        cell = self.equilibrium.cell
        assert isinstance(cell, AttentionCell)
        return cell.at(self.forward.value, self.equilibrium.u).mean.weights()

    def __repr__(self) -> str:
        return f"AttentionPullback({self.forward!r})"


@dataclass(eq=False, repr=False)
class ImplicitAttentionHead(Layer):
    """``X = att(K, Q, V)`` with ``[K Q V] = X R + U S``: attention at its fixed point.

    Inputs (m, T, e), outputs (m, T, H h).

    With e = `embed_dim`, h = `head_dim`, H = `num_heads`, the parameters are R (H, h,
    3h) and S (H, e, 3h); the columns of each head stand in the order k, q, v. With
    `coupled`, each head hears the outputs of all of them, side by side, and R is (H, H
    h, 3h). With `rank` r, ``R = L M`` is given by L (H, h, r), or (H, H h, r), and M
    (H, r, 3h).

    Parameters
    ----------
    embed_dim, head_dim : int
        e and h.
    num_heads : int
        H.
    attention : Attention
        `KernelAttention`, `BoundedSoftmax` or `Softmax`. The first two can be certified
        for every input.
    causal : bool
        Whether a token sees only itself and those before it.
    block_size : int, optional
        The largest number of tokens; longer inputs are refused. `KernelAttention` needs
        it, as its bound grows with their number.
    coupled : bool
        Whether a head hears all heads, or itself.
    constraint : AttentionBall or Unconstrained
        The set in which the fixed point is certain. `project` maps into it; the forward
        pass uses the parameters as they are.
    rank : int, optional
        r.
    forward, adjoint : Solver, optional
        Default: `solvers.Auto`.
    dtype : {"float32", "float64"}
        In which everything is computed. Tolerances follow it: 1e-6 and 1e-12.
    rng : Generator, int or None
        Draws the initial parameters: S with variance 1 / e, a small R.

    Raises
    ------
    InputError
        If an argument is out of range, or `block_size` is missing where the constraint
        needs it.

    Examples
    --------
    >>> from pyidl import ImplicitAttentionHead
    >>> head = ImplicitAttentionHead(6, 4, num_heads=2, block_size=10, rng=0)
    >>> Y, pull = head(np.ones((3, 10, 6)))
    >>> dU, grads = pull(np.ones((3, 10, 8)))
    >>> Y.shape, dU.shape, sorted(grads)
    ((3, 10, 8), (3, 10, 6), ['R', 'S'])
    >>> head.certificate().proven, pull.weights().shape
    (True, (3, 2, 10, 10))
    """

    embed_dim: int
    head_dim: int
    _: KW_ONLY
    num_heads: int = 1
    attention: Attention = KernelAttention()  # noqa: RUF009 (frozen)
    causal: bool = True
    block_size: int | None = None
    coupled: bool = False
    constraint: AttentionBall | Unconstrained = AttentionBall()  # noqa: RUF009 (frozen)
    rank: int | None = None
    forward: Solver | None = None
    adjoint: Solver | None = None
    dtype: str = "float32"
    rng: InitVar[Rng] = None

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        shapes, rows, r = self._shapes(), self._heard, self.rank
        drawn = {"S": generator.normal(0.0, self.embed_dim**-0.5, shapes["S"])}
        if r is None:
            return {**drawn, "R": generator.normal(0.0, 0.5 / rows, shapes["R"])}
        size = (0.25 / (r * rows**2)) ** 0.25  # the entries of L M then have about that variance
        return drawn | {key: generator.normal(0.0, size, shapes[key]) for key in ("L", "M")}

    def _validate(self) -> None:
        for name in ("embed_dim", "head_dim", "num_heads"):
            setattr(self, name, check_width(name, getattr(self, name)))
        for name in ("block_size", "rank"):
            if getattr(self, name) is not None:
                setattr(self, name, check_width(name, getattr(self, name)))
        self.dtype = check_dtype(self.dtype)
        expect(
            "attention",
            self.attention,
            Attention,
            "use KernelAttention(), BoundedSoftmax() or Softmax()",
        )
        expect(
            "constraint",
            self.constraint,
            (AttentionBall, Unconstrained),
            "use AttentionBall(...), or Unconstrained()",
        )
        expect_flags(self, "causal", "coupled")
        check_solvers(self.forward, self.adjoint)
        if self.rank is not None and self.rank > self._heard:
            raise InputError(
                f"rank is {self.rank}, but R has only {self._heard} rows; use rank=None for a "
                "full R"
            )
        if isinstance(self.constraint, AttentionBall):
            self.constraint.radii(self.head_dim, self.attention, self.block_size)

    @property
    def _heard(self) -> int:
        """How many outputs a head hears."""
        return self.head_dim * (self.num_heads if self.coupled else 1)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        H, rows, width, r = self.num_heads, self._heard, 3 * self.head_dim, self.rank
        R: dict[str, tuple[int, ...]] = (
            {"R": (H, rows, width)} if r is None else {"L": (H, rows, r), "M": (H, r, width)}
        )
        return {**R, "S": (H, self.embed_dim, width)}

    def _widths(self) -> tuple[int, int]:
        return self.embed_dim, self.num_heads * self.head_dim

    @property
    def takes_lengths(self) -> bool:
        """Whether calls take lengths: they do, as tokens beyond them are masked."""
        return True

    def _check(self, U: Any) -> None:
        if U.ndim != 3 or U.shape[2] != self.embed_dim or U.size == 0:
            hint = missing_axis(U, 3, self.embed_dim, "sequence")
            raise InputError(
                f"U has shape {U.shape}; ImplicitAttentionHead takes tokens, "
                f"(m, T, {self.embed_dim}) with m, T >= 1{hint}"
            )
        if self.block_size is not None and U.shape[1] > self.block_size:
            raise InputError(
                f"U has {U.shape[1]} tokens, block_size is {self.block_size}; shorten it, or take "
                f"head.replace(block_size={U.shape[1]}), look at its certificate(), and project "
                "its parameters"
            )

    # ----------------------------------------------------------------------- calling it

    def __call__(
        self, U: Any, lengths: Any = None, *, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, AttentionPullback]:
        """Return ``(Y, pullback)``.

        As for every `Layer`; and for sequences of several lengths:

        Parameters
        ----------
        lengths : array of integers, shape (m,), or of booleans, shape (m, T), optional
            How many tokens each sample of U, (m, T, e), has, at least 1; or which. The
            others neither see nor are seen, and their outputs are 0. The pullback then
            returns ``(dU, None)``.
        """
        U = backend.own(self._admit(U), U)
        Y, pull = self._forward(U, Call(on_fail=on_fail, line=_line(U, lengths)))
        return Y, replace(pull, lengths=lengths is not None)

    def predict(
        self,
        U: Any,
        lengths: Any = None,
        *,
        batch_size: int | None = None,
        on_fail: OnFail = "raise",
    ) -> Any:
        """Return Y alone, in batches of at most `batch_size` samples."""
        U = self._admit(U)
        return self._in_batches(U, batch_size, Call(on_fail=on_fail, line=_line(U, lengths)))

    def _forward(self, U: Any, call: Call) -> tuple[Any, AttentionPullback]:
        """``X = att(X R + Z)``, ``Z = U S``, and ``Y = X``, heads side by side.

        With P the cotangent of Z, which the equilibrium gives together with G_R,

            G_S = U^T P,    dU = P S^T;    G_L = G_R M^T,  G_M = L^T G_R  for R = L M.
        """
        xp, p, (m, T, e) = namespace(U), self.params, U.shape
        H, _, width = p["S"].shape
        cell, Z, on_fail = self._cell(self._mask(call.line)), self._inject(U), call.on_fail
        X = solved(cell.bind(Z), self.forward, on_fail=on_fail, certificate=self.certificate)
        pull = EquilibriumPullback(cell, Z, X, self.adjoint or DEFAULT_ADJOINT, on_fail)
        Y = xp.reshape(xp.permute_dims(X.value, (0, 2, 1, 3)), (m, T, -1))

        def backward(dY: Any, inputs: bool) -> tuple[Any, Grads]:
            dX = xp.permute_dims(xp.reshape(dY, (m, T, H, width // 3)), (0, 2, 1, 3))
            P, grads = pull(dX, True)
            if "L" in p:
                G = grads.pop("R")
                grads["L"] = G @ xp.matrix_transpose(p["M"])
                grads["M"] = xp.matrix_transpose(p["L"]) @ G
            # A token a row, heads side by side.
            rows = xp.reshape(xp.permute_dims(P, (0, 2, 1, 3)), (-1, H * width))
            G_S = xp.reshape(xp.reshape(U, (-1, e)).T @ rows, (e, H, width))
            grads["S"] = xp.permute_dims(G_S, (1, 0, 2))
            return (xp.reshape(rows @ _flat(p["S"]).T, U.shape) if inputs else None), grads

        return Y, AttentionPullback(Y, backward, pull)

    def equilibrium(
        self,
        U: Any,
        lengths: Any = None,
        *,
        x0: Array | None = None,
        on_fail: OnFail = "raise",
        trace: bool = False,
    ) -> Solution:
        """Solve for the outputs X of the heads, (m, H, T, h), and say how it went.

        Parameters
        ----------
        U, lengths, on_fail
            As in a call of the head.
        x0 : array, shape (m, H, T, h), optional
            Where the iteration starts; it changes the answer by no more than the
            tolerance.
        trace : bool
            Whether to keep the residual of every step, in `Solution.trace`.
        """
        expect("trace", trace, bool, "use True or False")
        U = self._admit(U)
        problem = self._cell(self._mask(_line(U, lengths))).bind(self._inject(U))
        if x0 is not None:
            x0 = backend.as_real(x0, name="x0", xp=self.xp, dtype=self.dtype)
            if x0.shape != problem.like.shape:
                raise InputError(
                    f"x0 has shape {x0.shape}; the states of these inputs have {problem.like.shape}"
                )
        proof = self.certificate
        return solved(problem, self.forward, x0, on_fail=on_fail, certificate=proof, trace=trace)

    def _mask(self, line: Timeline | None) -> Mask:
        present = None if line is None else line.mask
        return Mask(self.causal, None if present is None else backend.from_host(self.xp, present))

    def _cell(self, mask: Mask) -> AttentionCell:
        p = self.params
        return AttentionCell(p["R"] if "R" in p else p["L"] @ p["M"], self.attention, mask)

    def _inject(self, U: Any) -> Any:
        """``U S``, (m, H, T, 3h): one product for all heads."""
        xp, (m, T, e) = namespace(U), U.shape
        Z = xp.reshape(
            xp.reshape(U, (m * T, e)) @ _flat(self.params["S"]),
            (m, T, self.num_heads, 3 * self.head_dim),
        )
        return xp.asarray(xp.permute_dims(Z, (0, 2, 1, 3)), copy=True)

    # -------------------------------------------------------------- one token at a time

    def start(self, m: int) -> Cache:
        """The cache of m sequences without a token, for `step`.

        Raises
        ------
        InputError
            If the head is not causal: then a new token changes what was computed for
            those before it.
        """
        if not self.causal:
            raise InputError(
                "this head is not causal, so a new token changes the outputs of all tokens; use "
                "head(U) for the whole sequence"
            )
        return begin(self._cell(Mask()), check_width("m", m))

    def step(self, u: Any, cache: Cache, *, on_fail: OnFail = "raise") -> tuple[Any, Cache]:
        """Return ``(y, cache)`` after one more token.

        y is its output, (m, H h), and the cache what later tokens see. Tokens before it
        are final, so that one fixed point of H h numbers is solved; its cost is linear
        in their number. The cache that is given stays as it was: two continuations may
        start from it.

        Parameters
        ----------
        u : array, shape (m, e)
            The token of each of m sequences.
        cache : Cache
            From `start` or from the last step, with the same parameters.
        on_fail : {"raise", "warn", "ignore"}
            What happens to samples whose solve does not converge.

        Examples
        --------
        >>> from pyidl import ImplicitAttentionHead
        >>> head = ImplicitAttentionHead(6, 4, block_size=10, rng=0)
        >>> U, cache = np.random.default_rng(0).normal(size=(2, 10, 6)), head.start(2)
        >>> for t in range(10):
        ...     y, cache = head.step(U[:, t], cache)
        >>> bool(np.allclose(y, head.predict(U)[:, -1], atol=1e-5))
        True
        """
        expect("cache", cache, Cache, "give what start(m) or the last step returned")
        u = backend.as_real(u, name="u", xp=self.xp, dtype=self.dtype)
        m = cache.K.shape[0]
        if u.shape != (m, self.embed_dim):
            raise InputError(
                f"u has shape {u.shape}; a step takes one token of each of {m} sequences, "
                f"{(m, self.embed_dim)}"
            )
        if self.block_size is not None and cache.length >= self.block_size:
            raise InputError(
                f"the cache holds {cache.length} tokens, which is block_size; start again from the "
                "last ones"
            )
        cell, Z = self._cell(Mask()), self._inject(u[:, None, :])
        X, cache = advance(cell, Z, cache, self.forward, on_fail, self.certificate)
        return namespace(X).reshape(X, (m, -1)), cache

    # ------------------------------------------------------------------- what is proven

    def project(self, params: Params) -> dict[str, Array]:
        """Return parameters inside `constraint`: the nearest ones for a full R."""
        if isinstance(self.constraint, Unconstrained):
            return dict(params)
        return self.constraint.project(params, self.attention, self.block_size)

    def _equation(self) -> str:
        state = f"{self.num_heads * self.head_dim} states a token"
        return in_words(state, self.constraint, self.forward, self.adjoint)

    def certificate(self, explain: bool = False) -> Certificate:
        """What is proven about the fixed point for the present parameters.

        For every input of at most `block_size` tokens.
        """
        return attention_certificate(
            self.params, self.attention, self.block_size, self.causal, explain
        )

    def with_tol(self, tol: Tol) -> ImplicitAttentionHead:
        """Return the same head at this tolerance, or at a pair (forward, adjoint)."""
        forward, adjoint = solvers_at(self.forward, self.adjoint, tol)
        return self.replace(forward=forward, adjoint=adjoint)


def _line(U: Any, lengths: Any) -> Timeline | None:
    """Which tokens of U are there; None for all."""
    return None if lengths is None else Timeline.read(lengths, *U.shape[:2])


def _flat(S: Any) -> Any:
    """``(H, e, 3h) -> (e, H 3h)``."""
    xp, (H, e, width) = namespace(S), S.shape
    return xp.reshape(xp.permute_dims(S, (1, 0, 2)), (e, H * width))
