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

from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, cast

import numpy as np

from pyidl import activations
from pyidl.activations.names import ActivationOption
from pyidl.arrays import backend
from pyidl.arrays.batch import total
from pyidl.cells import AffineCell
from pyidl.equilibrium import DEFAULT_ADJOINT, EquilibriumPullback, solved
from pyidl.errors import InputError, expect, expect_flags, is_real
from pyidl.layers import initializers
from pyidl.layers.base import Call, Layer, Pullback, check_widths, finite_output, missing_axis
from pyidl.layers.parameter_space import Implicit, ParameterSpace
from pyidl.matrices import sparse
from pyidl.matrices.base import Matrix
from pyidl.matrices.pattern import Pattern
from pyidl.solvers import Solution, Solver
from pyidl.solvers.base import check_solvers
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array, Grads, Namespace, Params, Rng
from pyidl.wellposed import Constraint, InfNorm

__all__ = ["ImplicitModel", "ImplicitPullback"]


@dataclass(eq=False, repr=False)
class ImplicitModel(Implicit):
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
    activation : Activation or str
        phi, one of `pyidl.activations` or its name, such as ``"tanh"``, ``Blocks(...)``
        of total width n, or your own.
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

    tokenwise = takes_sparse = True

    input_dim: int
    output_dim: int
    hidden_dim: int
    _: KW_ONLY
    activation: ActivationOption = ActivationOption(activations.relu)  # noqa: RUF009
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

    def _validate(self) -> None:
        check_widths(self, "input_dim", "output_dim", "hidden_dim")
        expect_flags(self, "bias", "feedthrough")
        if not (is_real(self.sparse_below) and 0 <= self.sparse_below <= 1):
            raise InputError(
                f"sparse_below is {self.sparse_below!r}; "
                "it is a share of nonzero entries, between 0 and 1"
            )
        check_solvers(self.forward, self.adjoint)
        self._space = ParameterSpace(
            self.input_dim,
            self.output_dim,
            self.hidden_dim,
            self.activation,
            self.constraint,
            self.rank,
            self.pattern,
            self.bias,
            self.feedthrough,
            self.dtype,
            self.sparse_below,
        )

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        p, q, n, k = self.input_dim, self.output_dim, self.hidden_dim, self.rank
        if k is None:
            drawn = {"A": initializers.uniform_contraction(generator, n)}
        else:  # the entries of L R^T then have about the variance of those of A above
            size = (1 / (3 * k)) ** 0.25
            drawn = {key: generator.normal(0.0, size, (n, k)) / n**0.5 for key in ("L", "R")}
        drawn["B"] = initializers.he_normal(generator, n, p)
        drawn["C"] = initializers.lecun_normal(generator, q, n)
        if self.feedthrough:
            drawn["D"] = initializers.lecun_normal(generator, q, p)
        return drawn | ({"b": np.zeros(n), "d": np.zeros(q)} if self.bias else {})

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self._space.shapes()

    def _widths(self) -> tuple[int, int]:
        return self.input_dim, self.output_dim

    def _read(self, checked: Params) -> list[tuple[Layer, dict[str, Any]]]:
        maps = self._space.read(checked, self.__dict__.get("_maps"))
        return [(self, {"_params": checked, "_maps": maps})]

    @property
    def maps(self) -> Mapping[str, Matrix]:
        """A, B, C and D as the solvers see them.

        With the structure that was read when the parameters were set.
        """
        return cast(Mapping[str, Matrix], self.__dict__["_maps"])

    def sparsify(self, below: float = sparse.DENSITY) -> ImplicitModel:
        """Return the same model with products in compressed rows.

        It multiplies large A, B, C and D so where few of their entries differ from
        zero. Answers and gradients are the same up to rounding; gradients are those of
        all entries unless a pattern confines them.

        Parameters
        ----------
        below : float
            The largest share of nonzero entries. The default is where it pays on one
            core; full products use all cores, and compressed ones a single one, so
            divide it by the number of cores. See docs/performance.md.

        Returns
        -------
        ImplicitModel

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> ImplicitModel(3, 2, 10, rng=0).sparsify(0.05).sparse_below
        0.05
        """
        return self.replace(sparse_below=below)

    # ----------------------------------------------------------------- what it is given

    def _check(self, U: Any) -> None:
        if U.ndim != 2 or U.shape[1] != self.input_dim:
            hint = missing_axis(U, 2, self.input_dim, "sample")
            raise InputError(
                f"U has shape {U.shape}; ImplicitModel takes (m, {self.input_dim}), "
                f"one sample a row{hint or '; reshape it first'}"
            )
        if U.shape[0] == 0:
            raise InputError("U has no rows; at least one sample is needed")

    def _admit_start(self, U: Any, x0: Any) -> Any:
        return _state("x0", x0, self.xp, self.dtype, (U.shape[0], self.hidden_dim))

    # ----------------------------------------------------------------------- calling it

    def __call__(
        self, U: Any, *, x0: Array | None = None, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, ImplicitPullback]:
        """Return ``(Y, pullback)``.

        As for every `Layer`; and:

        Parameters
        ----------
        x0 : array, shape (m, n), optional
            The states from which the solve starts. It changes the answer by no more
            than the tolerance.
        """
        admitted = backend.own(self._admit(U), U)
        Y, pull = self._solve(admitted, self._admit_start(admitted, x0), on_fail)
        return finite_output(Y, on_fail), pull

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

        Returns
        -------
        Solution

        Raises
        ------
        InputError, DeviceMismatchError, ConvergenceError
            As a call of the model.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> solution = ImplicitModel(3, 2, 10, rng=0).equilibrium(np.ones((5, 3)))
        >>> solution.value.shape, bool(solution.converged.all())
        ((5, 10), True)
        """
        expect("trace", trace, bool, "use True or False")
        U = self._admit(U)
        return self._solved(self._cell(), U, self._admit_start(U, x0), on_fail, trace)

    def _output(self, U: Any, call: Call) -> Any:
        return self._read_out(self._solved(self._cell(), U, None, call.on_fail).value, U)

    def _solved(
        self, cell: AffineCell, U: Any, x0: Any, on_fail: OnFail, trace: bool = False
    ) -> Solution:
        problem, proof = cell.bind(U), self.certificate
        return solved(problem, self.forward, x0, on_fail=on_fail, certificate=proof, trace=trace)

    def _cell(self) -> AffineCell:
        maps = self.maps
        return AffineCell(maps["A"], maps["B"], self._params.get("b"), self.activation)

    # ------------------------------------------------------- the map and its derivative

    def _forward(self, U: Any, call: Call) -> tuple[Any, ImplicitPullback]:
        return self._solve(U, None, call.on_fail)

    def _solve(self, U: Any, x0: Any, on_fail: OnFail) -> tuple[Any, ImplicitPullback]:
        """``X = phi(X A^T + U B^T + b)``, and Y of it."""
        cell = self._cell()
        solution = self._solved(cell, U, x0, on_fail)
        pull = EquilibriumPullback(cell, U, solution, self.adjoint or DEFAULT_ADJOINT, on_fail)
        Y = self._read_out(solution.value, U)
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


@dataclass(frozen=True, repr=False)
class ImplicitPullback(Pullback):
    """The derivative of ``Y = X C^T + U D^T + d`` and of the equilibrium X.

    Attributes
    ----------
    equilibrium : EquilibriumPullback
        The implicit function theorem at the solution.
    """

    maps: Mapping[str, Matrix]
    bias: bool
    equilibrium: EquilibriumPullback

    def rule(self, dY: Any, inputs: bool, v0: Any = None) -> tuple[Any, Grads]:
        """``dX = dY C``, of which the equilibrium makes dU, dA, dB and db.

        Besides, ``dC = dY^T X``, ``dD = dY^T U``, ``dd`` is the sum of the rows of dY,
        and U is heard through D too: ``dU += dY D``.
        """
        X, U, maps = self.forward.value, self.equilibrium.u, self.maps
        dU, grads = self.equilibrium(maps["C"].T.rows(dY), inputs, v0=v0)
        grads |= maps["C"].grads("C", dY, X)
        if "D" in maps:
            grads |= maps["D"].grads("D", dY, U)
            dU = dU + maps["D"].T.rows(dY) if inputs else None
        if self.bias:
            grads["d"] = total(dY)
        return dU, grads

    def __call__(
        self, dY: Array, inputs: bool = True, *, v0: Array | None = None
    ) -> tuple[Any, Grads]:
        """Return ``(dU, grads)``.

        As for every `Pullback`; and:

        Parameters
        ----------
        v0 : array, shape (m, n), optional
            Where the adjoint solve starts, for instance ``pull.solve(dY).value`` of the
            step before. It changes the answer by no more than the tolerance.
        """
        return self.rule(self._admit(dY, inputs), inputs, self._admit_start(v0))

    def solve(self, dY: Array, *, v0: Array | None = None, trace: bool = False) -> Solution:
        """The adjoint solve alone: ``V = phi'(Z) * (V A + dY C)``.

        Parameters
        ----------
        dY, v0
            As in a call.
        trace : bool
            Whether to keep the residual of every step, in `Solution.trace`.

        Returns
        -------
        Solution

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> Y, pull = ImplicitModel(3, 2, 10, rng=0)(np.ones((5, 3)))
        >>> pull.solve(np.ones((5, 2))).value.shape
        (5, 10)
        """
        dX = self.maps["C"].T.rows(self._admit(dY))
        return self.equilibrium.solve(dX, v0=self._admit_start(v0), trace=trace)

    def _admit_start(self, v0: Any) -> Any:
        X = self.forward.value
        return _state("v0", v0, backend.namespace(X), backend.real_dtype(X), X.shape)

    @property
    def forward(self) -> Solution:
        """The forward solve: states, steps, residuals."""
        return self.equilibrium.forward

    @property
    def reads(self) -> Mapping[str, Any]:
        """``Y = X C^T + U D^T + d``."""
        seen = {"C": self.forward.value, "D": self.equilibrium.u}
        matrices = {key: a for key, a in seen.items() if key in self.maps}
        return {**matrices, "d": None} if self.bias else matrices

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solve."""
        return (self.forward,)

    def __repr__(self) -> str:
        return f"ImplicitPullback({self.forward!r})"


def _state(name: str, value: Any, xp: Namespace, dtype: str, shape: tuple[int, ...]) -> Any:
    """Check and cast the states from which a solve starts, if they are given."""
    if value is None:
        return None
    start = backend.as_real(value, name=name, xp=xp, dtype=dtype)
    if start.shape != shape:
        raise InputError(f"{name} has shape {start.shape}; the states have {shape}")
    return start
