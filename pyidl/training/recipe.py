"""The recipe by which the estimators and the command line train.

Columns are standardised, the loss follows from the kind of target, the squares of all
matrices are penalised, and the rate of Adam falls to 0. What comes out takes the
columns as they are (`pyidl.training.standardise`).

Bound and rate were chosen together, on five small tables, by
``tests/benchmarks/estimators.py --select``; `EPOCHS`, `STEPS`, `PRIOR` and `FEW` on 300
rows of those and of two functions, by ``--few``. docs/estimators.md has the results.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyidl.activations import Activation
from pyidl.arrays.backend import is_sparse
from pyidl.layers import ImplicitModel
from pyidl.layers.base import Layer, check_width
from pyidl.losses import cross_entropy, mse
from pyidl.optim import Adam, Cosine, Schedule
from pyidl.training.fit import Metric, fit
from pyidl.training.readout import ReadOut, install, readout
from pyidl.training.ridge import ridge
from pyidl.training.run import Callback, History
from pyidl.training.standardise import Standardiser, fold
from pyidl.wellposed import Constraint, InfNorm

__all__ = [
    "KAPPA",
    "LEARNING_RATE",
    "TOL",
    "Scaled",
    "Standardised",
    "enough",
    "falling",
    "going_on",
]

KAPPA = 0.5
"""The bound of `InfNorm`.

Each step of a solve at least halves the error, forward and backward.
"""
LEARNING_RATE = 1e-2
"""The rate of Adam at the start; it falls to 0 along half a cosine."""
PRIOR, FEW = 5.0, 200
"""The weight of `ridge`, if nobody says it: ``PRIOR / max(m, FEW)`` for m samples.

So it counts as much as five of them, as a prior does. The loss of few samples is
soon near 0, and what holds it is the penalty.
"""
EPOCHS, STEPS = 50, 150
"""How long is trained, at least, if nobody says it: epochs, and steps."""
TOL = (1e-3, 1e-2)
"""The tolerances of the solves of training, forward and adjoint.

With tighter ones no table was answered better.
"""

SCALES = (0.1, 10.0)
"""Bounds of the logit that stands for a target of 1, where a read-out is solved for."""

Data = tuple[Any, np.ndarray, np.ndarray | None]
"""Inputs, (m, p) of a table, targets, and weights (m,) or None, not standardised.

A table may be sparse, in compressed rows (CSR): its columns are then not shifted.
Targets are labels (m,), the numbers of classes, or values (m, q).
"""


@dataclass(frozen=True, eq=False)
class Scaled:
    """A network between two scalings: ``y = outputs.undo(network(inputs(u)))``.

    Attributes
    ----------
    network : Layer
        What is trained.
    inputs, outputs : Standardiser
        Those of the first data; training further keeps them.
    """

    network: Layer
    inputs: Standardiser
    outputs: Standardiser

    @abstractmethod
    def folded(self) -> Layer:
        """The layer that takes inputs, and gives targets, as they are."""

    def train(
        self,
        data: Data,
        *,
        optimizer: Adam,
        epochs: int,
        batch_size: int | None,
        rng: np.random.Generator,
        alpha: float | None = None,
        validation: Data | None = None,
        metrics: Sequence[Metric] = (),
        callbacks: Iterable[Callback] = (),
        verbose: int = 0,
    ) -> History:
        """Train the network in place.

        Parameters
        ----------
        data, validation : (inputs, targets, weights)
            As the network was built for; of labels the cross-entropy is minimised, of
            values the squared error, in units of their deviation.
        alpha : float, optional
            The weight of `ridge`; ``PRIOR / max(m, FEW)`` if None.
        optimizer, epochs, batch_size, rng, metrics, callbacks, verbose
            As for `pyidl.fit`.

        Returns
        -------
        History
        """
        alpha = PRIOR / max(len(data[1]), FEW) if alpha is None else alpha
        return fit(
            self.network,
            self._standardised(data),
            loss=cross_entropy if data[1].ndim == 1 else mse,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation=None if validation is None else self._standardised(validation),
            rng=rng,
            metrics=metrics,
            penalty=ridge(alpha) if alpha else None,
            tol=TOL,
            callbacks=callbacks,
            verbose=verbose,
        )

    def read_out(self, data: Data, *, alpha: float | None, batch_size: int | None) -> ReadOut:
        """Solve for the last matrices, in closed form; all else stays as it is.

        Of labels, the squares of +1 and -1 are fitted. The outputs are then multiplied
        by the number within `SCALES` that makes them logits: it minimises the
        cross-entropy of what is said of each sample without it.

        Parameters
        ----------
        data, batch_size
            As for `train`.
        alpha : float, optional
            The weight of the squares beside the mean loss, as for `train`; if None, the
            best for samples that are left out.

        Returns
        -------
        ReadOut
        """
        U, T, weights = self._standardised(data)
        total = len(T) if weights is None else float(np.sum(weights))
        # The mean loss is that over entries: times their number it is the sum of squares.
        weight = "loo" if alpha is None else 0.5 * alpha * total * len(self.outputs.mean)
        found = readout(self.network, (U, T, weights), ridge=weight, batch_size=batch_size)
        if T.ndim == 1:
            from scipy.optimize import minimize_scalar

            said = np.isfinite(found.left_out).all(axis=1)
            logits, labels = found.left_out[said], T[said]
            rest = None if weights is None else weights[said]

            def loss(log_scale: float) -> float:
                return float(cross_entropy(np.exp(log_scale) * logits, labels, weights=rest)[0])

            best = minimize_scalar(loss, bounds=np.log(SCALES), method="bounded").x
            params = self.network.params
            install(self.network, {name: np.exp(best) * params[name] for name in found.names})
        return found

    def _standardised(self, data: Data) -> tuple[Any, ...]:
        U, T, weights = data
        return self._arrays(U), T if T.ndim == 1 else self.outputs(T), weights

    def _arrays(self, U: Any) -> tuple[np.ndarray, ...]:
        """What the network is called with."""
        return (self.inputs(U),)

    def predict(self, U: Any) -> np.ndarray:
        """Logits, or values in the units of the targets, (m, q) in float64."""
        Y = np.asarray(self.network.predict(*self._arrays(U)), dtype=np.float64)
        return self.outputs.undo(Y)


@dataclass(frozen=True, eq=False)
class Standardised(Scaled):
    """A model of standardised columns: ``y = outputs.undo(network(inputs(u)))``.

    Attributes
    ----------
    network : ImplicitModel
        What is trained.
    inputs, outputs : Standardiser
        Those of the first data; training further keeps them.

    Examples
    --------
    >>> from pyidl import activations
    >>> U = np.linspace(-2, 2, 60)[:, None]
    >>> data, rng = (U, 100 + 50 * np.tanh(U), None), np.random.default_rng(0)
    >>> relu = activations.relu
    >>> model = Standardised.build(data, hidden_dim=10, activation=relu, rng=rng)
    >>> adam = falling(Adam(LEARNING_RATE), data, batch_size=20, epochs=50)
    >>> options = {"epochs": 50, "batch_size": 20, "alpha": 1e-3, "rng": rng}
    >>> history = model.train(data, optimizer=adam, **options)
    >>> model.predict(U).shape, bool(history["loss"][-1] < 0.1 * history["loss"][0])
    ((60, 1), True)
    """

    network: ImplicitModel

    @classmethod
    def build(
        cls,
        data: Data,
        *,
        classes: int | None = None,
        standardise: bool = True,
        hidden_dim: int,
        activation: Activation,
        constraint: Constraint | None = None,
        rank: int | None = None,
        dtype: str = "float64",
        rng: np.random.Generator,
    ) -> Standardised:
        """A new network for these data.

        Parameters
        ----------
        data : (inputs, targets, weights)
            They give the widths, means and deviations.
        classes : int, optional
            How many there are, if targets are labels: one logit each.
        standardise : bool
            Whether inputs are standardised; values to predict always are.
        hidden_dim, activation, constraint, rank, dtype
            As for `ImplicitModel`; the constraint is ``InfNorm(KAPPA)`` if None.
        rng : Generator
            Draws the parameters.

        Raises
        ------
        InputError
            If `ImplicitModel` refuses an option.
        """
        U, T, weights = data
        inputs = Standardiser.of(U, weights) if standardise else Standardiser.identity(U.shape[1])
        outputs = Standardiser.of(T, weights) if classes is None else Standardiser.identity(classes)
        network = ImplicitModel(
            U.shape[1],
            len(outputs.mean),
            hidden_dim,
            activation=activation,
            constraint=InfNorm(KAPPA) if constraint is None else constraint,
            rank=rank,
            dtype=dtype,
            rng=rng,
        )
        return cls(network, inputs, outputs)

    def predict(self, U: Any) -> np.ndarray:
        """Logits, or values in the units of the targets, (m, q) in float64.

        A sparse U is not shifted; the folded model needs no shift.
        """
        if is_sparse(U) and self.inputs.mean.any():
            return np.asarray(self.folded().predict(U), dtype=np.float64)
        return super().predict(U)

    def folded(self) -> ImplicitModel:
        """The model that takes the columns, and gives the targets, as they are."""
        return fold(self.network, self.inputs, self.outputs)


def falling(adam: Adam, data: Data, batch_size: int | None, epochs: int) -> Adam:
    """Adam whose rate falls to 0 from the present step to the last of these epochs.

    A rate that is a schedule already is taken as it is.

    Parameters
    ----------
    adam : Adam
        Its rate is where the new one begins; its state goes on.
    data, batch_size, epochs
        What `Scaled.train` will be called with: they give the number of steps.

    Returns
    -------
    Adam

    Raises
    ------
    InputError
        If `batch_size` is no number of samples.
    """
    rate, steps = adam.learning_rate, _steps(data, batch_size) * epochs
    return adam if callable(rate) else going_on(adam, _Later(Cosine(rate, steps), adam.count))


def enough(data: Data, batch_size: int | None) -> int:
    """How many epochs are done where nobody says it: `EPOCHS`, or `STEPS` steps.

    Of a small table an epoch is one step or two, and 50 of those are not enough.

    Examples
    --------
    >>> small, large = ((np.ones((m, 1)), np.ones((m, 1)), None) for m in (300, 3000))
    >>> enough(small, 200), enough(large, 200)
    (75, 50)
    """
    return max(EPOCHS, -(-STEPS // _steps(data, batch_size)))


def _steps(data: Data, batch_size: int | None) -> int:
    """Those of an epoch; samples of weight 0 take no part."""
    _, targets, weights = data
    m = len(targets) if weights is None else max(int(np.count_nonzero(weights)), 1)
    return 1 if batch_size is None else -(-m // min(check_width("batch_size", batch_size), m))


def going_on(adam: Adam, rate: float | Schedule) -> Adam:
    """Another Adam of this rate, with the state of this one."""
    other = Adam(rate)
    other.state, other.count = adam.state, adam.count
    return other


@dataclass(frozen=True)
class _Later:
    """A schedule, from a step on that is not the first."""

    schedule: Cosine
    start: int

    def __call__(self, count: int) -> float:
        return self.schedule(count - self.start)
