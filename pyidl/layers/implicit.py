r"""The implicit model: ``x = phi(A x + B u + b)``, ``y = C x + D u + d``.

The state x is not computed layer by layer but is the solution of an equation.
Feed-forward networks of any depth are the special case of a strictly block triangular
A; in general every unit may feed every other. In rows, one sample each,

    X = phi(X A^T + U B^T + b),    Y = X C^T + U D^T + d.

Both biases are those of the papers' ``u <- (u, 1)``.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, eq. (1.1).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, cast

import numpy as np

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.arrays import backend
from pyidl.cells import AffineCell
from pyidl.equilibrium import DEFAULT_FORWARD, EquilibriumPullback, settled
from pyidl.errors import InputError, expect, expect_flags, is_real
from pyidl.layers import initializers
from pyidl.layers.base import Call, Layer, Pullback, check_dtype, check_width
from pyidl.layers.tolerance import solvers_at
from pyidl.matrices import read, sparse
from pyidl.matrices.base import Matrix
from pyidl.matrices.pattern import Pattern
from pyidl.solvers import Solution, Solver
from pyidl.solvers.base import check_solvers
from pyidl.solvers.solution import OnFail, settle
from pyidl.typing import Array, Grads, Params, Rng, Tol
from pyidl.wellposed import Constraint, InfNorm, strongest
from pyidl.wellposed.certificate import Certificate

__all__ = ["ImplicitModel", "ImplicitPullback"]


@dataclass(frozen=True, repr=False)
class ImplicitPullback(Pullback):
    """The derivative of ``Y = X C^T + U D^T + d`` and, through it, of the equilibrium X.

    Attributes
    ----------
    equilibrium : EquilibriumPullback
        The implicit function theorem at the solution.
    """

    maps: Mapping[str, Matrix]
    bias: bool
    equilibrium: EquilibriumPullback

    @property
    def forward(self) -> Solution:
        """The forward solve: states, steps, residuals."""
        return self.equilibrium.forward

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solve."""
        return (self.forward,)

    def __call__(
        self, dY: Array, inputs: bool = True, *, v0: Array | None = None
    ) -> tuple[Any, Grads]:
        """Return ``(dU, grads)``.

        The adjoint solve starts from v0, shape (m, n), if it is given.

        Such a start, for instance ``pull.solve(dY).value`` of the step before, changes
        the answer by no more than the tolerance. Otherwise as for every `Pullback`.
        """
        return self._rule(self._admit(dY, inputs), inputs, self._admit_start(v0))

    def solve(self, dY: Array, *, v0: Array | None = None, trace: bool = False) -> Solution:
        """The adjoint solve for this dY alone.

        ``V = phi'(Z) * (V A + dY C)``, for study.
        """
        return self.equilibrium.solve(
            self.maps["C"].T.rows(self._admit(dY)), v0=self._admit_start(v0), trace=trace
        )

    def _admit_start(self, v0: Any) -> Any:
        if v0 is None:
            return None
        X = self.forward.value
        start = backend.as_real(v0, name="v0", xp=backend.namespace(X), dtype=backend.real_dtype(X))
        if start.shape != X.shape:
            raise InputError(f"v0 has shape {start.shape}; the states have {X.shape}")
        return start

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """``dC = dY^T X, dD = dY^T U, dd = sum of rows``.

        The equilibrium does the rest, from ``dX = dY C``.
        """
        return self._rule(dY, inputs, None)

    def _rule(self, dY: Any, inputs: bool, v0: Any) -> tuple[Any, Grads]:
        X, U, maps = self.forward.value, self.equilibrium.u, self.maps
        dU, grads = self.equilibrium(maps["C"].T.rows(dY), inputs, v0=v0)
        grads |= maps["C"].grads("C", dY, X)
        if "D" in maps:
            grads |= maps["D"].grads("D", dY, U)
            dU = dU + maps["D"].T.rows(dY) if inputs else None
        if self.bias:
            grads["d"] = backend.namespace(dY).sum(dY, axis=0)
        return dU, grads

    def __repr__(self) -> str:
        return f"ImplicitPullback({self.forward!r})"


@dataclass(eq=False, repr=False)
class ImplicitModel(Layer):
    """``x = phi(A x + B u + b)``, ``y = C x + D u + d``.

    In rows ``X = phi(X A^T + U B^T + b)``, ``Y = X C^T + U D^T + d``.

    With p = `input_dim`, q = `output_dim`, n = `hidden_dim`, the parameters are A (n,
    n), B (n, p), C (q, n), D (q, p), b (n,), d (q,); with `rank` k, A = L R^T is given
    by L (n, k) and R (n, k), and is never formed. Gradients are exact (implicit
    function theorem), up to the tolerance of the two solves.

    Parameters
    ----------
    input_dim, output_dim, hidden_dim : int
        p, q, n.
    activation : Activation
        phi, one of `pyidl.activations`, ``Blocks(...)`` of total width n, or your own.
    constraint : Constraint
        The set in which the fixed point is certain. `project` maps into it; the forward
        pass uses the parameters as they are.
    rank : int, optional
        k, at most n.
    pattern : Pattern, optional
        Where A, B, C and D may be nonzero. Entries outside start as zeros and stay
        zeros; their products and gradients are not computed. Without it, an A that is
        block triangular is recognised when the parameters are set; its gradients are
        then full.
    bias : bool
        Whether there are b and d.
    feedthrough : bool
        Whether there is D.
    forward, adjoint : Solver, optional
        Default: `solvers.Auto`.
    dtype : {"float32", "float64"}
        In which everything is computed. Tolerances follow it: 1e-6 and 1e-12.
    sparse_below : float
        Large A, B, C and D with at most this share of nonzero entries are multiplied in
        compressed rows; 0 for never. See `sparsify`.
    rng : Generator, int or None
        Draws the initial parameters, on the host: the same seed gives the same model on
        every device.

    Raises
    ------
    InputError
        If an argument is out of range, or an activation does not fit.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> model = ImplicitModel(3, 2, 10, rng=0)
    >>> Y, pull = model(np.ones((5, 3)))
    >>> dU, grads = pull(np.ones((5, 2)))
    >>> Y.shape, dU.shape, sorted(grads)
    ((5, 2), (5, 3), ['A', 'B', 'C', 'D', 'b', 'd'])
    >>> model.certificate().proven, bool(pull.forward.converged.all())
    (True, True)
    """

    tokenwise = True

    input_dim: int
    output_dim: int
    hidden_dim: int
    _: KW_ONLY
    activation: Activation = activations.relu
    constraint: Constraint = InfNorm(0.99)  # noqa: RUF009 (frozen)
    rank: int | None = None
    pattern: Pattern | None = None
    bias: bool = True
    feedthrough: bool = True
    forward: Solver | None = None
    adjoint: Solver | None = None
    dtype: str = "float32"
    sparse_below: float = 0.0
    rng: InitVar[Rng] = None

    def __post_init__(self, rng: Rng) -> None:
        self._validate()
        generator = backend.as_generator(rng)
        p, q, n, k = self.input_dim, self.output_dim, self.hidden_dim, self.rank
        if k is None:
            drawn = {"A": initializers.uniform_contraction(generator, n)}
        else:  # the entries of L R^T then have about the variance of those of A above
            drawn = {"L": generator.normal(0.0, (1 / (3 * k)) ** 0.25, (n, k)) / n**0.5}
            drawn["R"] = generator.normal(0.0, (1 / (3 * k)) ** 0.25, (n, k)) / n**0.5
        drawn["B"] = initializers.he_normal(generator, n, p)
        drawn["C"] = initializers.lecun_normal(generator, q, n)
        if self.feedthrough:
            drawn["D"] = initializers.lecun_normal(generator, q, p)
        if self.bias:
            drawn |= {"b": np.zeros(n), "d": np.zeros(q)}
        for key in set(drawn) & set("ABCD"):
            mask = self.support(key)
            drawn[key] = drawn[key] if mask is None else drawn[key] * mask
        # Cast first: a projection in float64 may be rounded out of the set.
        self.params = self.project({key: a.astype(self.dtype) for key, a in drawn.items()})

    def _validate(self) -> None:
        self.input_dim = check_width("input_dim", self.input_dim)
        self.output_dim = check_width("output_dim", self.output_dim)
        self.hidden_dim = n = check_width("hidden_dim", self.hidden_dim)
        self.dtype = check_dtype(self.dtype)
        if self.rank is not None and check_width("rank", self.rank) > n:
            raise InputError(
                f"rank is {self.rank}, but A has only {n} rows; use rank=None for a full A"
            )
        expect(
            "constraint",
            self.constraint,
            Constraint,
            "use one of pyidl.wellposed, such as InfNorm(0.99)",
        )
        expect_flags(self, "bias", "feedthrough")
        if not (is_real(self.sparse_below) and 0 <= self.sparse_below <= 1):
            raise InputError(
                f"sparse_below is {self.sparse_below!r}; it is a share of nonzero entries, between 0 and 1"
            )
        check_solvers(self.forward, self.adjoint)
        if self.pattern is not None:
            _check_pattern(self.pattern, self._shapes())
            if self.pattern.A is not None and not self.constraint.keeps_zeros:
                raise InputError(
                    f"the projection of {self.constraint!r} does not keep the zeros of a pattern of A; use InfNorm or PerronFrobenius, "
                    "or no pattern"
                )
        _check_activation(self.activation, n, self.dtype)
        refusal = self.constraint.refusal(self.activation)
        if refusal:
            raise InputError(
                f"{self.constraint!r} does not go with {self.activation.name}: {refusal}"
            )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        p, q, n, k = self.input_dim, self.output_dim, self.hidden_dim, self.rank
        A: dict[str, tuple[int, ...]] = {"A": (n, n)} if k is None else {"L": (n, k), "R": (n, k)}
        D: dict[str, tuple[int, ...]] = {"D": (q, p)} if self.feedthrough else {}
        b: dict[str, tuple[int, ...]] = {"b": (n,), "d": (q,)} if self.bias else {}
        return {**A, "B": (n, p), "C": (q, n), **D, **b}

    def _widths(self) -> tuple[int, int]:
        return self.input_dim, self.output_dim

    def _check(self, U: Any) -> None:
        if U.ndim != 2 or U.shape[1] != self.input_dim:
            hint = (
                "; for one sample use U[None, :]"
                if U.ndim == 1
                else ", one sample a row; reshape it first"
            )
            raise InputError(
                f"U has shape {U.shape}; ImplicitModel takes (m, {self.input_dim}){hint}"
            )
        if U.shape[0] == 0:
            raise InputError("U has no rows; at least one sample is needed")

    def support(self, name: str) -> np.ndarray | None:
        """The mask of the pattern, if there is one."""
        return getattr(self.pattern, name, None)

    def _checked(self, new: Mapping[str, Any]) -> Params:
        checked = super()._checked(new)
        for key in set(checked) & set("ABCD"):
            mask = self.support(key)
            outside = (
                0 if mask is None else int(np.count_nonzero(backend.to_numpy(checked[key])[~mask]))
            )
            if outside:
                raise InputError(
                    f"parameter {key} has {outside} nonzero entries outside its pattern; set them to zero: {key} * pattern.{key}"
                )
        return checked

    def _read(self, checked: Params) -> list[tuple[Layer, dict[str, Any]]]:
        before, doubtful = self.__dict__.get("_maps"), not self.constraint.contracts
        maps = read.read_model(checked, self.pattern, before, doubtful, self.sparse_below)
        return [(self, {"_params": checked, "_maps": maps})]

    @property
    def maps(self) -> Mapping[str, Matrix]:
        """A, B, C and D as the solvers see them, with the structure that was read when the parameters were set."""
        return cast(Mapping[str, Matrix], self.__dict__["_maps"])

    def _cell(self) -> AffineCell:
        maps = self.maps
        return AffineCell(maps["A"], maps["B"], self._params.get("b"), self.activation)

    def __call__(
        self, U: Any, *, x0: Array | None = None, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, ImplicitPullback]:  # fmt: skip
        """Return ``(Y, pullback)``.

        The solve starts from the states x0, shape (m, n), if they are given.

        Such a start changes the answer by no more than the tolerance. Otherwise as for
        every `Layer`.
        """
        admitted = backend.own(self._admit(U), U)
        return self._solve(admitted, self._admit_start(admitted, x0), on_fail)

    def _forward(self, U: Any, call: Call) -> tuple[Any, ImplicitPullback]:
        return self._solve(U, None, call.on_fail)

    def _output(self, U: Any, call: Call) -> Any:
        solver = self.forward or DEFAULT_FORWARD
        solution = settle(
            solver(self._cell().bind(U)), call.on_fail, adjoint=False, certificate=self.certificate
        )
        return self._read_out(solution.value, U)

    def _solve(self, U: Any, x0: Any, on_fail: OnFail) -> tuple[Any, ImplicitPullback]:
        X, pull = settled(
            self._cell(), U, forward=self.forward, adjoint=self.adjoint, x0=x0, on_fail=on_fail, certificate=self.certificate
        )  # fmt: skip
        Y = self._read_out(X, U)
        return Y, ImplicitPullback(Y, self.maps, self.bias, pull)

    def _read_out(self, X: Any, U: Any) -> Any:
        """``Y = X C^T + U D^T + d``."""
        maps = self.maps
        Y = maps["C"].rows(X)
        if self.feedthrough:
            Y += maps["D"].rows(U)
        if self.bias:
            Y += self.params["d"]
        return Y

    def _admit_start(self, U: Any, x0: Any) -> Any:
        if x0 is None:
            return None
        start = backend.as_real(x0, name="x0", xp=self.xp, dtype=self.dtype)
        if start.shape != (U.shape[0], self.hidden_dim):
            raise InputError(
                f"x0 has shape {start.shape}; the states have {(U.shape[0], self.hidden_dim)}"
            )
        return start

    def equilibrium(
        self, U: Any, *, x0: Array | None = None, on_fail: OnFail = "raise", trace: bool = False
    ) -> Solution:
        """Solve for the states X of the inputs U, (m, n), and say how it went.

        Parameters
        ----------
        U : array, shape (m, p)
            One sample a row.
        x0 : array, shape (m, n), optional
            Where the iteration starts; it changes the answer by no more than the
            tolerance.
        on_fail : {"raise", "warn", "ignore"}
            As in a call of the model.
        trace : bool
            Whether to keep the residual of every step, in `Solution.trace`.
        """
        expect("trace", trace, bool, "use True or False")
        U = self._admit(U)
        solution = (self.forward or DEFAULT_FORWARD)(
            self._cell().bind(U), self._admit_start(U, x0), trace=trace
        )
        return settle(solution, on_fail, adjoint=False, certificate=self.certificate)

    def project(self, params: Params) -> dict[str, Array]:
        """Return parameters inside `constraint`.

        The nearest ones where that set is convex.
        """
        return self.constraint.project(params, self.activation)

    def certificate(self, explain: bool = False) -> Certificate:
        """The strongest of what is proven about the fixed point for the present parameters, for every input.

        Parameters
        ----------
        explain : bool
            Whether the other conditions are listed too, with what they prove or why
            they fail.
        """
        return strongest(self.params, self.activation, self.constraint, explain)

    def sparsify(self, below: float = sparse.DENSITY) -> ImplicitModel:
        """Return the same model, which multiplies large A, B, C and D in compressed rows where few of their entries differ from zero.

        Answers and gradients are the same up to rounding; gradients are those of all
        entries unless a pattern confines them.

        Parameters
        ----------
        below : float
            The largest share of nonzero entries. The default is where it pays on one
            core; full products use all cores, and compressed ones a single one, so
            divide it by the number of cores. See docs/performance.md.
        """
        return self.replace(sparse_below=below)

    def with_tol(self, tol: Tol) -> ImplicitModel:
        """Return the same model at this tolerance, or at a pair (forward, adjoint)."""
        forward, adjoint = solvers_at(self.forward, self.adjoint, tol)
        return self.replace(forward=forward, adjoint=adjoint)


def _check_pattern(pattern: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A mask must have the shape of its parameter, which must be there."""
    expect("pattern", pattern, Pattern, "use Pattern(A=mask, ...) or Pattern.feed_forward(widths)")
    for key in "ABCD":
        mask = getattr(pattern, key)
        if mask is None or (key == "D" and key not in shapes and not mask.any()):
            continue
        if key not in shapes:
            raise InputError(
                f"pattern has a mask for {key}, but the model has the parameters {', '.join(shapes)}"
            )
        if mask.shape != shapes[key]:
            raise InputError(
                f"the pattern of {key} has shape {mask.shape}, the parameter {shapes[key]}"
            )


def _check_activation(activation: Any, n: int, dtype: str) -> None:
    """Try the activation on a few zeros.

    It must keep shape and dtype, and return numbers.
    """
    expect(
        "activation",
        activation,
        Activation,
        "use one of pyidl.activations, or Activation(name, phi, dphi)",
    )
    if isinstance(activation, Blocks) and activation.width != n:
        raise InputError(
            f"{activation.name} covers {activation.width} components, the state has {n}"
        )
    parts = (
        [(b.activation, b.stop - b.start) for b in activation.blocks]
        if isinstance(activation, Blocks)
        else [(activation, n)]
    )
    for part, width in parts:
        z = np.zeros((2, width), dtype)
        derivative = (
            ("vjp", functools.partial(part.vjp, z))
            if part.vector_blocks(width)
            else ("dphi", part.dphi)
        )
        for name, function in (("phi", part.phi), derivative):
            try:
                y = function(z)
            except TypeError as error:
                raise InputError(
                    f"{name} of the activation {part.name!r} does not take an array of NumPy ({error}); take its functions from the "
                    "library of its array, pyidl.arrays.backend.namespace(z)"
                ) from error
            if (
                not isinstance(y, np.ndarray)
                or y.shape != z.shape
                or y.dtype != z.dtype
                or not np.all(np.isfinite(y))
            ):
                raise InputError(
                    f"{name} of the activation {part.name!r} turns zeros of shape {z.shape}, {z.dtype}, into {type(y).__name__} "
                    f"{getattr(y, 'shape', '')} {getattr(y, 'dtype', '')}; it must keep shape and dtype, and be finite"
                )
