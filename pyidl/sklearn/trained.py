"""What the estimators that train share: options, one run of training, and its books.

`Labelled` trains on labels, with one logit a class; `Valued` on values. Which network
is trained, and how inputs are read, says a subclass of `Trained`.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from pyidl.activations import Activation
from pyidl.activations.names import as_activation
from pyidl.errors import InputError, is_real
from pyidl.layers.base import Layer, check_dtype, check_width
from pyidl.optim import Adam, Schedule
from pyidl.sklearn.decision import Answers
from pyidl.sklearn.rollback import as_it_was, check_flags
from pyidl.training import EarlyStopping, History
from pyidl.training.recipe import (
    KAPPA,
    LEARNING_RATE,
    Data,
    Scaled,
    enough,
    falling,
    going_on,
)
from pyidl.wellposed import Constraint, InfNorm

__all__ = ["Labelled", "Trained", "Valued", "as_activation"]

LITTLE = 0.01
"""How much of the whole fall of the loss the last epochs may have without a warning."""


@dataclass(eq=False, repr=False)
class Trained(BaseEstimator):  # type: ignore[misc]
    """An estimator that trains a network by `pyidl.training.recipe`.

    The constructor, training, and standardised outputs.
    """

    _kept: ClassVar[tuple[str, ...]]
    """The options that cannot change while a network is trained further."""
    _checks: ClassVar[dict[str, bool]]
    """What scikit-learn's check of y is told."""

    hidden_dim: int = 100
    _: KW_ONLY
    activation: str | Activation = "relu"
    constraint: Constraint | None = None
    rank: int | None = None
    alpha: float | None = None
    batch_size: int | str | None = "auto"
    learning_rate: float | Schedule = LEARNING_RATE
    max_iter: int | None = None
    tol: float = 1e-4
    n_iter_no_change: int = 10
    readout: str = "trained"
    early_stopping: bool = False
    validation_fraction: float = 0.1
    standardize: bool = True
    warm_start: bool = False
    random_state: Any = None
    dtype: str = "float64"
    verbose: int = 0

    # What training keeps.
    _optimizer: Adam = field(init=False)
    _standardised: Scaled = field(init=False)

    @abstractmethod
    def _inputs(self, X: Any) -> Any:
        """Inputs to answer, checked against those of `fit`."""

    @abstractmethod
    def _pair(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        """Inputs and targets to train on, checked; with `reset` the first ever.

        Inputs have a length, and rows can be taken of them.
        """

    @abstractmethod
    def _build(self, data: Data, classes: int | None) -> Scaled:
        """A new network for these data, with this many logits if there are classes."""

    @abstractmethod
    def _targets(self, y: np.ndarray, used: Any, classes: Any, further: bool) -> np.ndarray:
        """What the loss compares with, of the samples that are used.

        Labels as positions in `classes_`, or one row of values a sample. `further` says
        that there is a network already.
        """

    @abstractmethod
    def _automatic(self, m: int) -> int:
        """What ``batch_size="auto"`` is for m samples."""

    def _weights(self, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Those of the samples, made of those that were given."""
        return weights

    def _train(
        self, X: Any, y: Any, sample_weight: Any, classes: Any = None, *, epochs: int | None
    ) -> Self:
        """Train for `epochs`, from where the last call ended.

        Or, with None, until the loss settles, and from there with a warm start.
        """
        further = hasattr(self, "_standardised") and (epochs is not None or bool(self.warm_start))
        self._check_options()
        X, y = self._pair(X, y, reset=not further)
        used, weights = _used(self._weights(y, _weighted(y, sample_weight)))
        data: Data = X[used], self._targets(y, used, classes, further), weights
        if further:
            self._resume()
        else:
            self._start(data)
        if epochs is None or not further:
            self.n_iter_ = 0
            self.loss_curve_: list[float] = []
        automatic = isinstance(self.batch_size, str) and self.batch_size == "auto"
        batch_size: Any = self._automatic(len(data[1])) if automatic else self.batch_size
        held_out, monitor, settles = None, "loss", epochs is None
        if settles and self.early_stopping and self.readout != "only":
            monitor = "val_loss"
            data, held_out = self._split(data)
        if self.readout == "only" or (self.readout == "first" and not further):
            self.readout_ = self._standardised.read_out(
                data, alpha=self.alpha, batch_size=batch_size
            )
        if self.readout == "only":
            self.history_ = History()
            return self
        if epochs is None:
            epochs = enough(data, batch_size) if self.max_iter is None else self.max_iter
            self._optimizer = falling(self._optimizer, data, batch_size, epochs)
        watch = EarlyStopping(self.n_iter_no_change, monitor, min_delta=self.tol)
        self.history_ = self._standardised.train(
            data,
            optimizer=self._optimizer,
            epochs=epochs,
            batch_size=batch_size,
            rng=self._rng,
            alpha=self.alpha,
            validation=held_out,
            callbacks=(watch,) if settles else (),
            verbose=self.verbose,
        )
        self.n_iter_ += len(self.history_)
        self.loss_curve_ = [*self.loss_curve_, *map(float, self.history_["loss"])]
        if settles and not self._has_settled(self.history_[monitor], epochs):
            warnings.warn(
                f"{type(self).__name__} stopped after max_iter = {epochs} epochs, "
                f"while {monitor} still fell by more than tol = {self.tol:g} within "
                f"{self.n_iter_no_change} epochs; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _check_options(self) -> None:
        """Refuse what neither the network nor the optimiser would refuse."""
        check_flags(self, "early_stopping", "standardize", "warm_start")
        if not (isinstance(self.readout, str) and self.readout in ("trained", "first", "only")):
            raise InputError(f"readout is {self.readout!r}; use 'trained', 'first' or 'only'")
        check_width("n_iter_no_change", self.n_iter_no_change)
        if self.max_iter is not None:
            check_width("max_iter", self.max_iter)
        if not (self.alpha is None or (is_real(self.alpha) and 0 <= self.alpha < np.inf)):
            raise InputError(
                f"alpha is {self.alpha!r}; the weight of the squared parameters is a finite "
                "number, at least 0, or None for the default"
            )
        if not (is_real(self.tol) and self.tol >= 0):
            raise InputError(
                f"tol is {self.tol!r}; by how much the loss must fall is a number, at least 0"
            )
        if not (is_real(self.validation_fraction) and 0 < self.validation_fraction < 1):
            raise InputError(
                f"validation_fraction is {self.validation_fraction!r}; it lies between 0 and 1"
            )

    def _split(self, data: Data) -> tuple[Data, Data]:
        """What is trained on, and what is watched.

        Of labels the same share in both, where both have room for every class.
        """
        U, T, weights = data
        if len(T) < 2:
            raise InputError(
                "early_stopping holds samples out, and there is 1 with a weight; give two or more"
            )
        stratified = False
        if T.ndim == 1:
            counts = np.unique(T, return_counts=True)[1]
            watched = math.ceil(self.validation_fraction * len(T))
            stratified = min(watched, len(T) - watched) >= len(counts) and counts.min() >= 2
        train, held_out = train_test_split(
            np.arange(len(T)),
            test_size=self.validation_fraction,
            stratify=T if stratified else None,
            random_state=int(self._rng.integers(2**31)),
        )

        def some(rows: np.ndarray) -> Data:
            return U[rows], T[rows], None if weights is None else weights[rows]

        return some(train), some(held_out)

    def _has_settled(self, values: np.ndarray, epochs: int) -> bool:
        """Whether a run ended by itself, or gained next to nothing at its end."""
        if len(values) < epochs:
            return True
        if callable(self.learning_rate) or len(values) <= self.n_iter_no_change:
            return False
        late = values[-1 - self.n_iter_no_change] - values[-1]
        return bool(late <= max(self.tol, LITTLE * (values[0] - values[-1])))

    def _start(self, data: Data) -> None:
        """Everything that a later `partial_fit`, or a warm start, goes on from."""
        self._rng = np.random.default_rng(
            check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        )
        self._built = {name: getattr(self, name) for name in self._kept}
        self._standardised = self._build(
            data, len(self.classes_) if isinstance(self, Labelled) else None
        )
        self._optimizer = Adam(self.learning_rate)

    def _resume(self) -> None:
        """Copies of what training changes.

        Adam goes on at the present learning rate.
        """
        for name, built in self._built.items():
            if _meant(name, getattr(self, name)) != _meant(name, built):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}, but the network was built with {built!r} "
                    "and is to be trained further; set it back, or start with a new estimator"
                )
        self._optimizer = going_on(self._optimizer, self.learning_rate)
        network = self._standardised.network.replace()
        self._standardised = replace(self._standardised, network=network)
        self._rng = copy.deepcopy(self._rng)

    @property
    def model_(self) -> Layer:
        """The fitted model, for inputs as they are: outputs are logits, or targets.

        For certificates, files, and devices.
        """
        check_is_fitted(self)
        return self._standardised.folded()

    def _raw(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._standardised.predict(self._inputs(X))


def _takes_steps(estimator: Trained) -> bool:
    """Whether there is a `partial_fit`."""
    if estimator.readout == "only":
        raise AttributeError(
            "readout is 'only', which solves once for all samples, and partial_fit takes steps "
            "with some of them; use fit, or readout='first'"
        )
    return True


@dataclass(eq=False, repr=False)
class Labelled(Answers, Trained):
    """A classifier: one logit a class, the cross-entropy."""

    _checks: ClassVar[dict[str, bool]] = {}

    _: KW_ONLY
    class_weight: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on samples X, labels y (m,) and weights (m,).

        A weight of 0 leaves a sample out; only its label belongs to `classes_`.
        """
        with as_it_was(self):
            return self._train(X, y, sample_weight, epochs=None)

    @available_if(_takes_steps)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One epoch over these samples.

        The first call needs all labels, in `classes` or in y, and fixes means and
        deviations. ``class_weight="balanced"`` is refused: nobody knows the labels to
        come.
        """
        with as_it_was(self):
            if isinstance(self.class_weight, str) and self.class_weight == "balanced":
                raise InputError(
                    "class_weight is 'balanced', which counts all labels, and partial_fit sees "
                    "some of them; count them before, class_weight=dict(zip(labels, "
                    "sklearn.utils.compute_class_weight('balanced', classes=labels, y=all_of_y)))"
                )
            return self._train(X, y, sample_weight, classes, epochs=1)

    def _check_options(self) -> None:
        super()._check_options()
        given = self.class_weight
        weights = given.values() if isinstance(given, Mapping) else []
        named = given is None or (isinstance(given, str) and given == "balanced")
        if not (
            (named or isinstance(given, Mapping))
            and all(is_real(weight) and 0 <= weight < np.inf for weight in weights)
        ):
            raise InputError(
                f"class_weight is {given!r}; use None, 'balanced', or a dict of a finite weight, "
                "at least 0, for each label"
            )

    def _weights(self, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Those of the samples times those of their classes."""
        if self.class_weight is None:
            return weights
        own = np.ones(len(y)) if weights is None else weights / weights.max()
        if isinstance(self.class_weight, str):
            used = own > 0
            own[used] *= compute_sample_weight("balanced", y[used])
        else:
            own *= [float(self.class_weight.get(label, 1.0)) for label in y.tolist()]
        if not own.any():
            raise InputError(
                f"class_weight is {self.class_weight!r}, and leaves no sample a weight; give a "
                "label that is there a weight above 0"
            )
        return own

    def _targets(self, y: np.ndarray, used: Any, classes: Any, further: bool) -> np.ndarray:
        check_classification_targets(y)
        if not further:
            self._tell_apart(np.unique(y if classes is None else classes))
        y = y[used]
        strangers = np.setdiff1d(y if classes is None else np.append(classes, y), self.classes_)
        if len(strangers):
            raise InputError(
                f"y or classes has {strangers.tolist()}; the model was built for the classes "
                f"{self.classes_.tolist()}"
            )
        given = self.class_weight if isinstance(self.class_weight, Mapping) else {}
        unknown = [label for label in given if label not in self.classes_.tolist()]
        if unknown:
            raise InputError(
                f"class_weight has {unknown!r}; the labels are {self.classes_.tolist()}"
            )
        return np.asarray(np.searchsorted(self.classes_, y))


@dataclass(eq=False, repr=False)
class Valued(MultiOutputMixin, RegressorMixin, Trained):  # type: ignore[misc]
    """A regressor: the squared error, in units of the deviations of the targets."""

    _checks: ClassVar[dict[str, bool]] = {"multi_output": True, "y_numeric": True}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on samples X, targets y (m,) or (m, q), and weights (m,)."""
        with as_it_was(self):
            return self._train(X, y, sample_weight, epochs=None)

    @available_if(_takes_steps)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One epoch over these samples.

        The first call fixes means and deviations, so give it more than a few.
        """
        with as_it_was(self):
            return self._train(X, y, sample_weight, epochs=1)

    def _targets(self, y: np.ndarray, used: Any, classes: Any, further: bool) -> np.ndarray:
        T: np.ndarray = np.asarray(y, dtype=np.float64).reshape(len(y), -1)[used]
        if not further:
            self._column = y.ndim == 1
        elif T.shape[1] != (width := len(self._standardised.outputs.mean)):
            raise InputError(
                f"y has {T.shape[1]} targets a sample; the model was built for {width}"
            )
        return T

    def predict(self, X: Any) -> np.ndarray:
        """The targets, (m,) or (m, q) as in `fit`."""
        Y = self._raw(X)
        return Y[:, 0] if self._column else Y


def _weighted(y: np.ndarray, sample_weight: Any) -> np.ndarray | None:
    """The weights that were given, checked."""
    if sample_weight is None:
        return None
    weights: np.ndarray = _check_sample_weight(sample_weight, y, dtype=np.float64)
    if not (np.all(weights >= 0) and np.any(weights)):
        raise InputError(
            f"sample_weight lies between {weights.min():g} and {weights.max():g}; weights are "
            "not negative, and not all of them 0"
        )
    return weights


def _used(weights: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
    """The samples that take part, and their weights.

    Those of weight 0 do not, in whatever is done later; equal weights are none.
    """
    if weights is None:
        return slice(None), None
    used = weights > 0
    weights = weights[used]
    return used, None if np.all(weights == weights[0]) else weights


def _meant(name: str, given: Any) -> Any:
    """An option in one spelling: "relu" is `activations.relu`, None the default."""
    if name == "activation":
        return as_activation(given)
    if name == "constraint":
        return InfNorm(KAPPA) if given is None else given
    return check_dtype(given) if name == "dtype" else given
