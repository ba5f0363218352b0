r"""Implicit recurrent networks as estimators of scikit-learn, for sequences.

``X_t = phi(A X_t + B [U_t, H_{t-1}] + b)``, ``H_t = C X_t + D [U_t, H_{t-1}] + d``, and
an output of the H of all steps, or of the last.

    ImplicitSequenceClassifier  one logit y_k for each class, probabilities softmax(y);
                                minimises the cross-entropy
    ImplicitSequenceRegressor   the targets themselves; minimises their squared error,
                                in units of their deviation

Both train as `ImplicitClassifier` and `ImplicitRegressor` do. Each channel is
standardised within, by its mean and deviation over the true steps of all sequences, and
the fitted `model_` takes the sequences as they are.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import validate_data

from pyidl.arrays.backend import to_numpy
from pyidl.errors import InputError, is_real
from pyidl.layers import Linear, Sequential
from pyidl.layers.base import Layer
from pyidl.recurrent import Bidirectional, ImplicitRNN
from pyidl.recurrent.pooling import Pool
from pyidl.sklearn.rollback import check_flags
from pyidl.sklearn.sequences import Sequences
from pyidl.sklearn.trained import Labelled, Trained, Valued, as_activation
from pyidl.training.recipe import KAPPA, Data, Scaled
from pyidl.training.standardise import Standardiser, absorbed
from pyidl.wellposed import InfNorm

__all__ = ["ImplicitSequenceClassifier", "ImplicitSequenceRegressor"]

NUMBERS = 2**24
"""How many numbers a prediction keeps at once, at most, where a sequence has fewer."""


STEPS, SMALLEST, LARGEST = 8, 8, 32
"""For ``batch_size="auto"``: steps an epoch, and the bounds of a batch.

Sets of sequences are often small, and one or two steps an epoch take them nowhere.
"""


SHORT = 20
"""Up to how many steps "auto" leaves the time scale out."""


@dataclass(frozen=True, eq=False)
class Recurrent(Scaled):
    """A recurrent network of standardised channels."""

    def _arrays(self, U: Sequences) -> tuple[np.ndarray, ...]:
        """Standardised, with zeros beyond the ends, which are not read."""
        values = np.where(U.mask[:, :, None], self.inputs(U.values), 0.0)
        return values, U.lengths

    def predict(self, U: Sequences) -> np.ndarray:
        """Logits, or values in the units of the targets, (m, q) in float64."""
        widest = max(max(a.shape) for a in self.network.params.values())
        rows = max(1, NUMBERS // (U.shape[1] * (widest + U.shape[2])))
        Y = self.network.predict(*self._arrays(U), batch_size=rows)
        return self.outputs.undo(np.asarray(Y, dtype=np.float64))

    def folded(self) -> Layer:
        """Layer by layer: inputs belong to what reads U, outputs to what gives Y."""
        network = self.network.replace()
        if isinstance(network, Sequential):
            (both, last), read = network.layers, ("W", "b")
            assert isinstance(both, Bidirectional)
            readers: list[Layer] = [both.ahead, both.back]
        else:
            readers, last, read = [network], network, ("E", "e")
        # What overflows is refused by the layer, by name.
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in readers:
                layer.params = absorbed(_host(layer), self.inputs)
            matrix, bias = read
            old = _host(last)
            scaled = {matrix: self.outputs.scale[:, None] * old[matrix]}
            last.params = {**old, **scaled, bias: self.outputs.undo(old[bias])}
        return network


def _host(layer: Layer) -> dict[str, Any]:
    """Its parameters, in float64."""
    return {key: to_numpy(a).astype(np.float64) for key, a in layer.params.items()}


@dataclass(eq=False, repr=False)
class _ImplicitSequence(Trained):
    """Sequences, and an `ImplicitRNN` or two of them."""

    _kept: ClassVar[tuple[str, ...]] = (
        "hidden_dim",
        "implicit_hidden_dim",
        "pool",
        "timescale",
        "bidirectional",
        "activation",
        "constraint",
        "rank",
        "standardize",
        "dtype",
    )

    hidden_dim: int = 32
    implicit_hidden_dim: int = 32
    _: KW_ONLY
    pool: Pool = "max"
    timescale: float | str | None = "auto"
    bidirectional: bool = False
    alpha: float | None = 1e-3
    max_iter: int | None = 100
    n_iter_no_change: int = 20

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _check_options(self) -> None:
        super()._check_options()
        check_flags(self, "bidirectional")
        automatic = isinstance(self.timescale, str) and self.timescale == "auto"
        if not (automatic or self.timescale is None or is_real(self.timescale)):
            raise InputError(
                f"timescale is {self.timescale!r}; use 'auto', None, or a number of steps"
            )

    def _inputs(self, X: Any) -> Sequences:
        sequences = Sequences.read(X, self)
        sequences.expect_channels(self.n_features_in_)
        return sequences

    def _pair(self, X: Any, y: Any, *, reset: bool) -> tuple[Sequences, np.ndarray]:
        sequences = Sequences.read(X, self) if reset else self._inputs(X)
        y = validate_data(self, y=y, **self._checks)
        check_consistent_length(sequences, y)
        if reset:
            self.n_features_in_ = sequences.shape[2]
        return sequences, y

    def _automatic(self, m: int) -> int:
        return min(max(m // STEPS, SMALLEST), LARGEST)

    def _build(self, data: Data, classes: int | None) -> Recurrent:
        X, T, weights = data
        steps = None if weights is None else np.repeat(weights, X.lengths)
        p = X.shape[2]
        inputs = (
            Standardiser.of(X.values[X.mask], steps)
            if self.standardize
            else Standardiser.identity(p)
        )
        outputs = Standardiser.of(T, weights) if classes is None else Standardiser.identity(classes)
        return Recurrent(self._network(p, len(outputs.mean), X.lengths), inputs, outputs)

    def _network(self, p: int, q: int, lengths: np.ndarray) -> Layer:
        """One that reads forwards, or one in each direction and a layer behind."""
        timescale: Any = self.timescale
        if isinstance(timescale, str):
            length = float(np.mean(lengths))
            timescale = length if length > SHORT else None

        def reading(width: int) -> ImplicitRNN:
            return ImplicitRNN(
                p,
                width,
                self.hidden_dim,
                self.implicit_hidden_dim,
                pool=self.pool,
                timescale=timescale,
                activation=as_activation(self.activation),
                constraint=InfNorm(KAPPA) if self.constraint is None else self.constraint,
                rank=self.rank,
                dtype=self.dtype,
                rng=self._rng,
            )

        if not self.bidirectional:
            return reading(q)
        r = self.hidden_dim
        ahead, back = reading(r), reading(r)
        return Sequential(
            Bidirectional(ahead, back), Linear(2 * r, q, dtype=self.dtype, rng=self._rng)
        )


@dataclass(eq=False, repr=False)
class ImplicitSequenceClassifier(_ImplicitSequence, Labelled):
    """A classifier of sequences, by an implicit recurrent network.

    Every step solves ``X_t = phi(A X_t + B [U_t, H_{t-1}] + b)`` and hands on ``H_t =
    C X_t + D [U_t, H_{t-1}] + d``; the logits are read from H, as `pool` says.

    X is an array (m, T, p) of m sequences of T steps and p channels; an array (m, T) of
    sequences of one channel; or, for sequences of different lengths, a list of arrays
    (T_i, p) or (T_i,). Time comes before channels: arrays of aeon and sktime are given
    as ``X.transpose(0, 2, 1)``. Lengths may differ between `fit` and `predict`, the
    number of channels may not.

    Parameters
    ----------
    hidden_dim, implicit_hidden_dim : int
        r, the width of H, which goes from step to step; n, that of X, which is solved
        for.
    pool : {"max", "mean", "last"}
        What the logits are read from: the maximum or the mean, entry by entry, of the H
        of all steps of a sequence, or the H of its last step.
    timescale : "auto", float or None
        How many steps a new network remembers, as for `ImplicitRNN`; "auto" is the mean
        length of the sequences of the first call, or None up to 20. It says where
        training starts.
    bidirectional : bool
        Whether a second network reads the sequences from their ends, and the logits are
        read from both.
    activation : str or Activation
        phi, by its name in `pyidl.activations`, or itself.
    constraint : Constraint, optional
        Where the solution of a step is certain to exist; ``InfNorm(0.5)`` if None.
    rank : int, optional
        Of A = L R^T, for fewer parameters.
    alpha : float, optional
        Weight of the squares of all matrices, ``alpha / 2`` times their sum, added to
        the mean loss.
    batch_size : int, "auto" or None
        Sequences a step; "auto" is an eighth of all, at least 8 and at most 32. With
        None, all at once, a weight of 2 is the same as a sequence that is there twice.
    learning_rate, max_iter, tol, n_iter_no_change, early_stopping, validation_fraction
        As for `ImplicitClassifier`.
    readout : {"trained", "first", "only"}
        As for `ImplicitClassifier`, of the matrix by which outputs are read from what
        is pooled.
    standardize : bool
        Whether channels are shifted and scaled within, by their mean and deviation over
        all steps of all sequences of the first call. A series of one's own level and
        size is not brought to those of the others.
    warm_start, random_state, dtype, verbose
        As for `ImplicitClassifier`.
    class_weight : dict, "balanced" or None
        ``{label: weight}``, 1 for a label that is not there; by these the weights of
        samples are multiplied. "balanced" gives every label of the call, together, the
        same weight; `partial_fit` refuses it.

    Attributes
    ----------
    n_features_in_ : int
        p, the number of channels: 1 for an array (m, T).
    model_ : ImplicitRNN or Sequential
        The fitted model, for sequences that are not standardised: ``model_(U)``, or
        ``model_(U, lengths)``.
    classes_, n_iter_, loss_curve_, history_, readout_
        As for `ImplicitClassifier`.

    Raises
    ------
    InputError
        If an option is out of range; if a sequence has no steps, or an entry that is
        not a finite number; if numbers of channels differ.
    ConvergenceError
        As for `ImplicitClassifier`.

    Examples
    --------
    Which of two waves, from 8 to 20 steps of it:

    >>> rng = np.random.default_rng(0)
    >>> steps = [np.arange(rng.integers(8, 21)) + 6 * rng.random() for _ in range(60)]
    >>> X = [np.sin((1 + i % 2) * t / 2) for i, t in enumerate(steps)]
    >>> y = 30 * ["slow", "fast"]
    >>> classifier = ImplicitSequenceClassifier(8, 8, max_iter=100, random_state=0)
    >>> classifier = classifier.fit(X[:40], y[:40])
    >>> classifier.score(X[40:], y[40:]) > 0.8, classifier.model_.certificate().proven
    (True, True)
    """


@dataclass(eq=False, repr=False)
class ImplicitSequenceRegressor(_ImplicitSequence, Valued):
    """A regressor of sequences, by an implicit recurrent network.

    It predicts what is read from the H of `ImplicitSequenceClassifier`, and minimises
    the squared error, each target measured in units of its deviation at the first call.
    Inputs, parameters, attributes and errors as there, without `class_weight` and
    `classes_`; targets may be one column or several, but none for every step.

    Examples
    --------
    The mean of a sequence, and its largest entry:

    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal(rng.integers(3, 9)) for _ in range(200)]
    >>> y = [[x.mean(), x.max()] for x in X]
    >>> regressor = ImplicitSequenceRegressor(16, 16, random_state=0)
    >>> regressor = regressor.fit(X[:150], y[:150])
    >>> regressor.score(X[150:], y[150:]) > 0.8, regressor.predict(X[150:]).shape
    (True, (50, 2))
    """
