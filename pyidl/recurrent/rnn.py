r"""The implicit recurrent network.

Every step solves ``X_t = phi(A X_t + B [U_t, H_{t-1}] + b)``. The hidden state that
goes from step to step is linear in what was found, and so is the output in the hidden
state:

    H_t = C X_t + D [U_t, H_{t-1}] + d
    Y = E H_T + e,    or Y_t = E H_t + e for every t

A step is thus an implicit model with p + r inputs and r outputs. The recurrence and its
derivative are in `bptt.py`; here are the parameters, the door, and the output. With A =
0 and D = 0 the network is Elman's, ``H_t = C phi(B [U_t, H_{t-1}] + b) + d``.

Source: Decugis, Tsai, Emerling, Ganesh, El Ghaoui, "The extrapolation power of implicit
models", IJCAI 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from pyidl import activations
from pyidl.activations.names import ActivationOption
from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.arrays.batch import total
from pyidl.equilibrium import DEFAULT_ADJOINT, DEFAULT_FORWARD
from pyidl.errors import InputError, expect_flags, is_real
from pyidl.layers import initializers
from pyidl.layers.base import (
    Call,
    Layer,
    Pullback,
    check_width,
    check_widths,
    finite_output,
    missing_axis,
)
from pyidl.layers.implicit import ImplicitModel
from pyidl.layers.parameter_space import Implicit, ParameterSpace
from pyidl.layers.timeline import Timeline
from pyidl.matrices.base import Matrix
from pyidl.matrices.full import Full
from pyidl.matrices.pattern import Pattern
from pyidl.recurrent.bptt import Backward, Forward, Traversal, back, gradients, unroll
from pyidl.recurrent.cell import ImplicitRNNCell
from pyidl.recurrent.error_bound import Recurrence
from pyidl.recurrent.pooling import Pool, check_pool, pooled
from pyidl.recurrent.step import Step
from pyidl.solvers import Solution, Solver
from pyidl.solvers.base import check_solvers
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array, Grads, Params, Rng
from pyidl.wellposed import Constraint, InfNorm

__all__ = ["ImplicitRNN", "RNNPullback"]

MEMORY = 0.8
"""How much of H a new network hands on unchanged in length.

D_h starts as this times an orthogonal matrix.
"""


@dataclass(eq=False, repr=False)
class ImplicitRNN(Implicit):
    """The recurrent network whose every step solves an equation for its state.

        X_t = phi(A X_t + B [U_t, H_{t-1}] + b)
        H_t = C X_t + D [U_t, H_{t-1}] + d,    H_0 = 0 unless given
        Y = E R + e,    R = H_T, or the mean or the maximum of H_1, ..., H_T

    With p = `input_dim`, q = `output_dim`, r = `hidden_dim`, n = `implicit_hidden_dim`,
    the parameters are A (n, n), or L and R (n, k) with `rank` k; B (n, p + r), C (r,
    n), D (r, p + r) or (r, p), E (q, r); b (n,), d (r,), e (q,). Inputs are sequences,
    (m, T, p); outputs (m, q), or (m, T, q). Gradients through time and through every
    equilibrium are exact, up to the tolerance of the solves; memory is linear in T,
    with n + r numbers for a sample and step.

    Parameters
    ----------
    input_dim, output_dim, hidden_dim, implicit_hidden_dim : int
        p, q, r, n.
    return_sequences : bool
        Whether there is an output for every step, ``Y_t = E H_t + e``, or a single one.
    pool : "last", "mean" or "max"
        What a single output reads: H of the last step, or, entry by entry, the mean or
        the maximum over all steps in which a sample takes part. A class that shows
        somewhere in a long sequence is learnt sooner from the maximum: there the
        gradient reaches the step that matters at once, and not through all those that
        follow it. Where steps count by their number, take the mean.
    timescale : float, optional
        How many steps a new network remembers. Its D_h is then diagonal, ``exp(-1/s)``
        with s from 1 to `timescale` in geometric progression: leaky sums of the past,
        some short and some as long as that. The length of the sequences is a good
        choice where they are long (more than some 30 steps) and vary slowly. Without
        it, D_h is 0.8 times an orthogonal matrix: a memory of some five steps, which
        knows no difference between slow and fast. It says where training starts, and
        nothing else.
    activation, constraint, rank, dtype, rng
        As for `ImplicitModel`.
    forward, adjoint : Solver, optional
        Of a step. The default, and `Picard` without damping, solve many steps at once
        by plain iteration, and turn to a step's own solver where that does not do;
        others solve one step after another. The tolerance of an adjoint solve is then
        relative to the largest right-hand side of its sequence from there to the end,
        as long as that is at most ``1 / sqrt(tol)`` times its own: cotangents that have
        decayed are not asked for digits which no gradient of a parameter shows.
    pattern : Pattern, optional
        Where A, B, C and D may be nonzero. With ``A=zeros``, the network is a recurrent
        one without a fixed point.
    bias : bool
        Whether there are b, d and e. Without them, and with a homogeneous phi such as
        ReLU, Y(t U) = t Y(U) for t > 0.
    feedthrough : True, False or "input"
        D acts on ``[U_t, H_{t-1}]``, is not there, or acts on U_t alone. The first is
        the default: then a step is an implicit model in full, as in the published
        experiments, and H has a linear way through time that no phi can close, along
        which gradients survive. The others are special cases, with zeros in D.
    warm_start : bool
        Whether a solve starts from the states of the step before (backward, where steps
        are solved one after another and each is read, of the step after). It
        changes the answer by no more than the tolerance, and where each step is watched
        it saves a third of the iterations if inputs change slowly.
    truncate : int, optional
        Cut the gradient of every sample each k steps, counted from its end: a step
        learns nothing of what it does to outputs beyond the cut that follows it. The
        gradient is *biased*: dependences over more than k steps are not learnt, those
        over fewer only where no cut lies between. Where H_T alone is read, the last k
        steps are differentiated, the others are not visited; the cotangent that is cut
        off is at most `Recurrence.memory` of k times that of the last H.

    Raises
    ------
    InputError
        If an argument is out of range, or an activation does not fit.

    Examples
    --------
    >>> from pyidl import ImplicitRNN
    >>> model = ImplicitRNN(3, 2, 5, 8, rng=0)
    >>> Y, pull = model(np.ones((4, 7, 3)))
    >>> dU, grads = pull(np.ones((4, 2)))
    >>> Y.shape, dU.shape, sorted(grads)
    ((4, 2), (4, 7, 3), ['A', 'B', 'C', 'D', 'E', 'b', 'd', 'e'])
    >>> Y, pull = model(np.ones((4, 7, 3)), lengths=[7, 3, 1, 5], h0=np.ones((4, 5)))
    >>> (dU, _, dh0), grads = pull(np.ones((4, 2)))
    >>> dh0.shape, bool(dU[2, 1:].any())
    ((4, 5), False)
    """

    input_dim: int
    output_dim: int
    hidden_dim: int
    implicit_hidden_dim: int
    _: KW_ONLY
    return_sequences: bool = False
    pool: Pool = "last"
    timescale: float | None = None
    activation: ActivationOption = ActivationOption(activations.relu)  # noqa: RUF009
    constraint: Constraint = InfNorm(0.99)  # noqa: RUF009 (frozen)
    rank: int | None = None
    pattern: Pattern | None = None
    bias: bool = True
    feedthrough: bool | Literal["input"] = True
    warm_start: bool = True
    truncate: int | None = None
    forward: Solver | None = None
    adjoint: Solver | None = None
    dtype: str = "float32"
    rng: InitVar[Rng] = None

    def __post_init__(self, rng: Rng) -> None:
        super().__post_init__(rng)
        self.params = self.project(self._balanced())  # B and C have a say in LipschitzBound

    def _validate(self) -> None:
        check_widths(self, "input_dim", "output_dim", "hidden_dim", "implicit_hidden_dim")
        if self.truncate is not None:
            self.truncate = check_width("truncate", self.truncate)
        expect_flags(self, "return_sequences", "bias", "warm_start")
        check_pool(self.pool, self.return_sequences)
        if not (isinstance(self.feedthrough, bool) or self.feedthrough == "input"):
            raise InputError(f"feedthrough is {self.feedthrough!r}; use True, False, or 'input'")
        if self.feedthrough == "input" and getattr(self.pattern, "D", None) is not None:
            raise InputError(
                "with feedthrough='input' the pattern cannot hold a D; "
                "use feedthrough=True with a mask for [U_t, H_{t-1}]"
            )
        if self.timescale is not None:
            if not (is_real(self.timescale) and 1 <= self.timescale < np.inf):
                raise InputError(
                    f"timescale is {self.timescale!r}; it is a number of steps, at least 1"
                )
            if self.feedthrough is not True:
                raise InputError(
                    "timescale is that of D_h, which a network with "
                    f"feedthrough={self.feedthrough!r} does not have; use feedthrough=True"
                )
            self.timescale = float(self.timescale)
        check_solvers(self.forward, self.adjoint)
        self._space = ParameterSpace(  # of a step: p + r inputs, r outputs
            self.input_dim + self.hidden_dim,
            self.hidden_dim,
            self.implicit_hidden_dim,
            self.activation,
            self.constraint,
            self.rank,
            self.pattern,
            self.bias,
            self.feedthrough is True,
            self.dtype,
        )

    # ------------------------------------------------------------------- its parameters

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        p, q, r, n = self.input_dim, self.output_dim, self.hidden_dim, self.implicit_hidden_dim
        lecun = initializers.lecun_normal
        # A comes from a model of one input and one output, whose B and C are drawn and
        # left: so a seed has always given the same network.
        model = ImplicitModel(
            1, 1, n, rank=self.rank, feedthrough=False, bias=False, dtype="float64", rng=generator
        )
        drawn = {key: a for key, a in model.params.items() if key not in "BC"}
        drawn["B"] = np.concatenate([lecun(generator, n, p), lecun(generator, n, r)], axis=1)
        drawn["C"] = lecun(generator, r, n)
        if self.feedthrough:
            drawn["D"] = 0.5 * lecun(generator, r, p)
        if self.feedthrough is True:
            hands_on = MEMORY * initializers.orthogonal(generator, r)  # so E is always the same
            if self.timescale is not None:
                hands_on = np.diag(np.exp(-1.0 / np.geomspace(self.timescale, 1.0, r)))
            drawn["D"] = np.concatenate([drawn["D"], hands_on], axis=1)
        drawn["E"] = lecun(generator, q, r)
        return drawn | ({"b": np.zeros(n), "d": np.zeros(r), "e": np.zeros(q)} if self.bias else {})

    def _balanced(self) -> dict[str, Any]:
        """The drawn parameters, with C and B_h scaled so that no step expands.

        In the 2-norm, and with L the Lipschitz constant of phi,

            |dH_t| <= (|D_h| + L |C| |B_h| / (1 - L |A|)) |dH_{t-1}|.

        The bracket is brought to 1, so that 1,000 steps neither explode nor forget
        everything at once. (Certain where the Frobenius norm of A, which bounds |A|, is
        below 0.99 / L.)
        """
        params: Mapping[str, Any] = self.params
        p, r = self.input_dim, self.hidden_dim
        A = params["A"] if "A" in params else params["L"] @ params["R"].T
        B, C = params["B"], params["C"]
        L = max(self.activation.row_lipschitz(self.implicit_hidden_dim) or [1.0])
        way = L * float(np.linalg.norm(C, 2)) * float(np.linalg.norm(B[:, p:], 2))
        way /= 1.0 - min(L * float(np.linalg.norm(A)), 0.99)
        kept = MEMORY if self.timescale is None else np.exp(-1.0 / self.timescale)  # |D_h|
        room = 1.0 - kept if self.feedthrough is True else 1.0
        shrink = (room / way) ** 0.5 if way > 0 else 1.0
        return {**params, "B": B * np.repeat([1.0, shrink], [p, r]), "C": C * shrink}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        p, q, r = self.input_dim, self.output_dim, self.hidden_dim
        D: dict[str, tuple[int, ...]] = {"D": (r, p)} if self.feedthrough == "input" else {}
        e: dict[str, tuple[int, ...]] = {"e": (q,)} if self.bias else {}
        return {**self._space.shapes(), **D, "E": (q, r), **e}

    def _read(self, checked: Params) -> list[tuple[Layer, dict[str, Any]]]:
        maps: dict[str, Matrix] = self._space.read(checked, self.__dict__.get("_maps"))
        if self.feedthrough == "input":
            maps["D"] = Full(checked["D"])
        step = Step.of(maps, checked, self.activation, self.input_dim)
        return [(self, {"_params": checked, "_maps": maps, "_step": step})]

    @property
    def _parts(self) -> Step:
        """The parameters of a step, with the structure of its matrices."""
        return cast(Step, self.__dict__["_step"])

    @property
    def cell(self) -> ImplicitRNNCell:
        """One step at a time, with the present parameters.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> y, state = ImplicitRNN(3, 2, 5, 8, rng=0).cell.step(np.ones((4, 3)))
        >>> y.shape, state.h.shape
        ((4, 2), (4, 5))
        """
        return ImplicitRNNCell(
            self._parts, self.forward, self.warm_start, self.certificate(), self.pool
        )

    def recurrence(self) -> Recurrence:
        """How an error of a solve, or of H_0, moves the outputs of the present network.

        Returns
        -------
        Recurrence

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> ImplicitRNN(3, 2, 5, 8, rng=0).recurrence().proven
        True
        """
        return Recurrence.of(self.certificate(), self._parts)

    # ----------------------------------------------------------------- what it is given

    def _widths(self) -> tuple[int, int]:
        return self.input_dim, self.output_dim

    @property
    def takes_lengths(self) -> bool:
        """A recurrence ends where its sequence does, so lengths matter."""
        return True

    def _check(self, U: Any) -> None:
        if U.ndim != 3 or U.shape[2] != self.input_dim or U.size == 0:
            hint = missing_axis(U, 3, self.input_dim, "sequence")
            raise InputError(
                f"U has shape {U.shape}; ImplicitRNN takes sequences, "
                f"(m, T, {self.input_dim}) with m, T >= 1{hint}"
            )

    def _told(self, U: Any, lengths: Any, h0: Any, on_fail: OnFail) -> Call:
        m, T, _ = U.shape
        line = Timeline.read(lengths, m, T)
        if h0 is not None:
            h0 = backend.as_real(h0, name="h0", xp=self.xp, dtype=self.dtype)
            if h0.shape != (m, self.hidden_dim):
                raise InputError(
                    f"h0 has shape {h0.shape}; one row for each of the {m} sequences is needed, "
                    f"{(m, self.hidden_dim)}"
                )
        return Call(on_fail=on_fail, line=line, h0=h0)

    # ----------------------------------------------------------------------- calling it

    def __call__(
        self,
        U: Any,
        lengths: Any = None,
        h0: Any = None,
        *,
        rng: Rng = None,
        on_fail: OnFail = "raise",
    ) -> tuple[Any, RNNPullback]:
        """Return ``(Y, pullback)``.

        Parameters
        ----------
        U : array, shape (m, T, p)
            m sequences, in the library and on the device of the parameters; cast to the
            layer's dtype.
        lengths : array of integers, shape (m,), or of booleans, shape (m, T), optional
            How many steps each sequence has, at least 1; or which. The other steps are
            not computed: they leave H as it is, so that `H_T` is that of the last step
            of each. Their entries of U are not used, but must be finite numbers.
        h0 : array, shape (m, r), optional
            H_0; zero if left out.
        rng : Generator, int or None
            Ignored.
        on_fail : {"raise", "warn", "ignore"}
            What happens to samples whose solve, forward or adjoint, does not converge.

        Returns
        -------
        Y : array, shape (m, q) or (m, T, q)
        pullback : RNNPullback

        Raises
        ------
        InputError
            If a shape does not fit, a length is not in 1, ..., T, or an entry is not a
            finite real number; if Y overflows, as for every `Layer`.
        DeviceMismatchError
            If U or h0 lives elsewhere than the parameters.
        ConvergenceError
            If a solve fails and `on_fail` is "raise"; it names the time step.
        """
        U = backend.own(self._admit(U), U)
        call = self._told(U, lengths, h0, on_fail)
        Y, pull = self._forward(U, call)
        return finite_output(Y, on_fail), replace(pull, given=(lengths is not None, h0 is not None))

    def predict(
        self,
        U: Any,
        lengths: Any = None,
        h0: Any = None,
        *,
        batch_size: int | None = None,
        on_fail: OnFail = "raise",
    ) -> Any:
        """Return Y alone, in batches of at most `batch_size` sequences.

        Parameters
        ----------
        U, lengths, h0, on_fail
            As in a call.
        batch_size : int, optional
            A number to choose where memory matters; all sequences at once if left out.

        Returns
        -------
        array, shape (m, q) or (m, T, q)

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> network = ImplicitRNN(3, 2, 5, 8, rng=0)
        >>> network.predict(np.ones((4, 7, 3)), batch_size=3).shape
        (4, 2)
        """
        U = self._admit(U)
        return self._in_batches(U, batch_size, self._told(U, lengths, h0, on_fail))

    # ------------------------------------------------------- the map and its derivative

    def _forward(self, U: Any, call: Call) -> tuple[Any, RNNPullback]:
        """H of all steps, and ``Y = R E^T + e`` of all of them or what is pooled."""
        step, line = self._parts, call.line or Timeline(U.shape[0], U.shape[1])
        solver = self.forward or DEFAULT_FORWARD
        how = Traversal(solver, self.warm_start, call.on_fail, self.certificate)
        path = unroll(step, line, U, call.h0, how)
        R, spread = pooled("every" if self.return_sequences else self.pool, path.H, line)
        Y = step.read(R)
        return Y, RNNPullback(Y, self, step, U, path, R, spread, call.on_fail)


@dataclass(frozen=True, repr=False)
class RNNPullback(Pullback):
    """The derivative of ``Y = R E^T + e`` and, through it, of the whole recurrence.

    What it returns for the inputs mirrors what was given: dU; or a tuple of dU, None
    for `lengths`, and dh0, as far as those were given, in this order.
    """

    layer: ImplicitRNN
    step: Step
    U: Array
    path: Forward
    R: Array
    spread: Callable[[Any], Any]
    on_fail: OnFail
    given: tuple[bool, bool] = (False, False)

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """``dR = dY E``, of which the recurrence makes nearly everything.

        Besides, ``dE = dY^T R``, and ``de`` is the sum of the rows of dY.
        """
        found, grads = self._back(dY)
        dU, rest = gradients(self.step, self.path, self.U, found, inputs)
        lengths, h0 = self.given
        if inputs and (lengths or h0):
            dU = (dU, *([None] * lengths), *([found.dh0] * h0))
        return dU, rest | grads

    def _back(self, dY: Any) -> tuple[Backward, Grads]:
        """Of the output, and of the recurrence as far as V and G of all steps."""
        layer, xp = self.layer, namespace(dY)
        rows, read = (xp.reshape(a, (-1, a.shape[-1])) for a in (dY, self.R))
        grads = {"E": rows.T @ read}
        if layer.bias:
            grads["e"] = total(rows)
        direct = self.spread(xp.reshape(rows @ self.step.E, self.R.shape))
        every = layer.return_sequences or layer.pool != "last"
        how = Traversal(layer.adjoint or DEFAULT_ADJOINT, layer.warm_start and every, self.on_fail)
        return back(self.step, self.path, direct, how, layer.truncate, every), grads

    def solve(self, dY: Array) -> Solution:
        """The adjoint solves of all steps for this dY, for study.

        Parameters
        ----------
        dY : array
            As in a call.

        Returns
        -------
        Solution
            V in the place of X in `forward`.

        Examples
        --------
        >>> from pyidl import ImplicitRNN
        >>> Y, pull = ImplicitRNN(3, 2, 5, 8, rng=0)(np.ones((4, 7, 3)))
        >>> pull.solve(np.ones((4, 2))).value.shape
        (28, 8)
        """
        found = self._back(self._admit(dY))[0]
        return found.solution(self.path.line)

    @property
    def forward(self) -> Solution:
        """The forward solves of all steps, a row for each sample and step.

        Those of the first step first.
        """
        return self.path.solution(self.step.activation)

    @property
    def reads(self) -> Mapping[str, Any]:
        """``Y = R E^T + e``, R all H or what is pooled."""
        return {"E": self.R, "e": None} if self.layer.bias else {"E": self.R}

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """How the solves of `forward` went; without X, which is not formed for that."""
        return (self.path.book.solution(self.path.Z, self.path.Z),)

    @property
    def converged(self) -> np.ndarray:
        """Which sequences have only steps that converged."""
        return self.path.line.every(self.path.book.status == 0)

    @property
    def hidden(self) -> Array:
        """H of all steps, (m, T, r)."""
        return cast(Array, self.path.line.spread(self.path.H))
