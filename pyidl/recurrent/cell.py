"""One step of an implicit recurrent network, for inputs that arrive one by one.

    X_t = phi(A X_t + B [U_t, H_{t-1}] + b)
    H_t = C X_t + D [U_t, H_{t-1}] + d
    Y_t = E R_t + e,    R_t = H_t, or the mean or the maximum of H_1, ..., H_t

The derivative of a step is in `bptt.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyidl.arrays import backend
from pyidl.arrays.backend import namespace
from pyidl.equilibrium import solved
from pyidl.errors import InputError
from pyidl.layers.base import finite_output
from pyidl.recurrent.pooling import Pool, joined
from pyidl.recurrent.step import Step
from pyidl.solvers import Solver
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array
from pyidl.wellposed.certificate import Certificate

__all__ = ["ImplicitRNNCell", "RNNState"]


class RNNState(NamedTuple):
    """What one step hands to the next.

    The hidden state h, (m, r), and the implicit state x, (m, n), where the next solve
    starts; what a network that pools has read so far, (m, r), of how many steps.
    """

    h: Array
    x: Array | None = None
    read: Array | None = None
    steps: int = 0


@dataclass(frozen=True, repr=False)
class ImplicitRNNCell:
    """The step of a network; it keeps nothing between steps.

    Its parameters are those of the moment at which `ImplicitRNN.cell` made it.

    Attributes
    ----------
    certificate : Certificate
        What is proven about the fixed point of a step.

    Examples
    --------
    >>> from pyidl import ImplicitRNN
    >>> cell = ImplicitRNN(3, 2, 5, 8, rng=0).cell
    >>> y, state = cell.step(np.ones((1, 3)))
    >>> y, state = cell.step(np.ones((1, 3)), state)
    >>> for y, state in cell.stream([np.ones((1, 3)), np.zeros((1, 3))], state):
    ...     print(y.shape, state.h.shape)
    (1, 2) (1, 5)
    (1, 2) (1, 5)
    """

    parameters: Step
    forward: Solver | None
    warm_start: bool
    certificate: Certificate
    pool: Pool = "last"

    def step(
        self, u: Any, state: RNNState | Array | None = None, *, on_fail: OnFail = "raise"
    ) -> tuple[Any, RNNState]:
        """Return ``(y, state)`` after one more input.

        Parameters
        ----------
        u : array, shape (m, p)
            One time step of m sequences.
        state : RNNState or array (m, r), optional
            What the last step returned, or a hidden state alone; zero if left out. A
            hidden state alone has no past: the mean or the maximum begins anew.
        on_fail : {"raise", "warn", "ignore"}
            What happens to samples whose solve does not converge.

        Returns
        -------
        y : array, shape (m, q)
            ``E R_t + e``: the answer to what has come so far.
        state : RNNState
            For the next step.

        Raises
        ------
        InputError
            If a shape does not fit, or an entry is not a finite real number; if y
            overflows, as for every `Layer`.
        DeviceMismatchError
            If u or the state lives elsewhere than the parameters.
        ConvergenceError
            If the solve fails and `on_fail` is "raise".
        """
        step, (n, r) = self.parameters, self.parameters.width
        u = self._admit("u", u)
        if u.ndim != 2 or u.shape[0] == 0 or u.shape[1] != step.input_dim:
            raise InputError(
                f"u has shape {u.shape}; a step takes one time step of m >= 1 sequences, "
                f"(m, {step.input_dim})"
            )
        m = u.shape[0]
        h, x, read, count = state if isinstance(state, RNNState) else (state, None, None, 0)
        h = namespace(u).zeros((m, r), dtype=u.dtype) if h is None else self._admit("h", h, (m, r))
        x0 = None if x is None else self._admit("x", x, (m, n))
        problem = step.cell(step.before(u)).bind(h)
        start, proof = x0 if self.warm_start else None, lambda: self.certificate
        X = solved(problem, self.forward, start, on_fail=on_fail, certificate=proof).value
        h = step.after(X, step.beside(u), h)
        read = joined(self.pool, read, count, h)
        return finite_output(step.read(read), on_fail), RNNState(h, X, read, count + 1)

    def stream(
        self,
        inputs: Iterable[Any],
        state: RNNState | Array | None = None,
        *,
        on_fail: OnFail = "raise",
    ) -> Iterator[tuple[Any, RNNState]]:
        """Yield ``(y, state)`` for every u of `inputs`, as they come.

        Parameters
        ----------
        inputs : iterable of arrays, shape (m, p)
            One time step of m sequences each.
        state, on_fail
            As in `step`; the state before the first of them.
        """
        for u in inputs:
            y, state = self.step(u, state, on_fail=on_fail)
            yield y, state

    def _admit(self, name: str, value: Any, shape: tuple[int, ...] | None = None) -> Any:
        E = self.parameters.E
        array = backend.as_real(value, name=name, xp=namespace(E), dtype=backend.real_dtype(E))
        if shape is not None and array.shape != shape:
            raise InputError(
                f"{name} has shape {array.shape}; "
                f"one row for each of the {shape[0]} sequences is needed, {shape}"
            )
        return array

    def __repr__(self) -> str:
        step, (n, r) = self.parameters, self.parameters.width
        p, q = step.input_dim, step.E.shape[0]
        return f"ImplicitRNNCell({p} inputs, {r} hidden, {n} implicit, {q} outputs)"
