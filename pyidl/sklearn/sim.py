"""A classifier that learns an implicit model from the states of a perceptron (SIM).

The teacher, a perceptron of scikit-learn, is trained on X and y, or was before. The
model

    x = phi(A x + B u + b),    y = C x + D u + d

is the one that reproduces the teacher's pre-activations, states and logits on X with
the least mean loss and penalty (`pyidl.sim.fit`). No gradient passes through a fixed
point.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pyidl import sim
from pyidl.errors import InputError
from pyidl.layers import ImplicitModel
from pyidl.matrices.pattern import Pattern
from pyidl.sim.penalties import Penalty
from pyidl.sklearn.decision import Answers
from pyidl.sklearn.rollback import as_it_was, check_flags
from pyidl.training.standardise import Standardiser, fold
from pyidl.wellposed import Constraint, InfNorm

__all__ = ["SIMClassifier"]

AFFINE = 1e-8
"""How far transformers may be from an affine map, relative to what they return."""


@dataclass(eq=False, repr=False)
class SIMClassifier(Answers, BaseEstimator):  # type: ignore[misc]
    """A sparse, certified implicit model in place of a trained `MLPClassifier`.

    Parameters
    ----------
    teacher : MLPClassifier or Pipeline that ends in one, optional
        One that is fitted is taken as it is, for inputs as they are. Another is cloned
        and trained; its own `random_state` is set to that of the classifier where it
        has none. ``MLPClassifier()`` if None. A fitted one must take an affine
        map of X, as behind a `StandardScaler` or `PCA`. (`sklearn.base.clone`, and so a
        search or a cross-validation, forgets that it is fitted:
        ``FrozenEstimator(teacher)`` is taken as it is there too.)
    penalty : pyidl.sim Penalty, optional
        On the weights, for the mean loss of standardised inputs; ``sim.L1(1e-3)`` if
        None.
    relaxed : pyidl.sim Penalty, optional
        Under which the weights that were chosen are fitted once more.
    constraint : Constraint, optional
        ``InfNorm(0.99)`` if None.
    pattern : str, Pattern or array of bool, optional
        Where A may be nonzero: "free", "no_self_loops", "block_triangular", or a mask
        (`pyidl.sim.fit`).
    refit_rounds : int
        How often the outputs are fitted to the model's own fixed points.
    standardize : bool
        Whether the columns of X are shifted and scaled within, for the model, and for a
        teacher that is trained here.
    random_state : int, RandomState or None
        Handed to a teacher that is trained here.
    dtype : {"float64", "float32"}
        In which the model computes.

    Attributes
    ----------
    classes_ : ndarray
        The labels.
    teacher_ : MLPClassifier or Pipeline
        The trained network; it takes standardised inputs, if it was trained here.
    model_ : ImplicitModel
        The fitted model, for inputs as they are; its outputs are logits (one, of the
        second class, where there are two).
    report_ : pyidl.sim Report
        Gaps, nonzeros, certificate, seconds.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.neural_network import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> teacher = MLPClassifier((20, 10), max_iter=1000)
    >>> classifier = SIMClassifier(teacher, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.9, classifier.report_.certificate.proven
    (True, True)
    """

    teacher: Any = None
    _: KW_ONLY
    penalty: Penalty | None = None
    relaxed: Penalty | None = None
    constraint: Constraint | None = None
    pattern: str | Pattern | np.ndarray | None = None
    refit_rounds: int = 1
    standardize: bool = True
    random_state: Any = None
    dtype: str = "float64"

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from the states of the teacher on X (m, p).

        It is trained on X and the labels y (m,), if it is not fitted.
        """
        with as_it_was(self):
            self._train(X, y)
        return self

    def _train(self, given: Any, y: Any) -> None:
        check_flags(self, "standardize")
        X, y = validate_data(self, given, y, dtype=np.float64)
        check_classification_targets(y)
        teacher = MLPClassifier() if self.teacher is None else self.teacher
        perceptron = _steps(teacher)[-1]
        if not isinstance(perceptron, MLPClassifier):
            raise InputError(
                f"teacher is {teacher!r}; use an MLPClassifier, a Pipeline that ends in one, or "
                "pyidl.sim.fit for other networks"
            )
        self._inputs = Standardiser.of(X) if self.standardize else Standardiser.identity(X.shape[1])
        V = self._inputs(X)
        if hasattr(perceptron, "coefs_"):
            validate_data(teacher, given, reset=False, skip_check_array=True)
            self._take_classes_of(perceptron, y)
            network = _behind(self._inputs, teacher, X)
        else:
            classes, T = np.unique(y, return_inverse=True)
            self._tell_apart(classes)
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
            teacher = clone(teacher)
            perceptron = _steps(teacher)[-1]
            if perceptron.random_state is None:
                perceptron.set_params(random_state=seed)
            network = _behind(Standardiser.identity(X.shape[1]), teacher.fit(V, T), V)
        self.teacher_ = teacher
        result = sim.fit(
            network,
            V,
            constraint=InfNorm(0.99) if self.constraint is None else self.constraint,
            penalty=sim.L1(1e-3) if self.penalty is None else self.penalty,
            relaxed=self.relaxed,
            pattern=self.pattern,  # type: ignore[arg-type]
            refit_rounds=self.refit_rounds,
            dtype=self.dtype,
        )
        self._network, self.report_ = result.model, result.report

    def _take_classes_of(self, perceptron: MLPClassifier, y: np.ndarray) -> None:
        """Those that a fitted teacher tells apart."""
        if perceptron.out_activation_ == "logistic" and perceptron.n_outputs_ > 1:
            raise InputError(
                f"teacher gives each sample any of {perceptron.n_outputs_} labels; "
                "SIMClassifier gives one, so train the teacher on labels (m,)"
            )
        self._tell_apart(perceptron.classes_)
        strangers = np.setdiff1d(y, self.classes_)
        if len(strangers):
            raise InputError(
                f"y has {strangers.tolist()}; the teacher tells apart {self.classes_.tolist()}"
            )

    @property
    def model_(self) -> ImplicitModel:
        """The fitted model, for inputs as they are."""
        check_is_fitted(self)
        return fold(self._network, self._inputs, Standardiser.identity(self._network.output_dim))

    def _raw(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        Y = np.asarray(self._network.predict(self._inputs(X)), dtype=np.float64)
        return np.concatenate([np.zeros_like(Y), Y], axis=1) if Y.shape[1] == 1 else Y


def _steps(teacher: Any) -> list[Any]:
    """The transformers of a teacher, and its network at the end."""
    if isinstance(teacher, FrozenEstimator):
        check_is_fitted(teacher)
        return _steps(teacher.estimator)
    if isinstance(teacher, Pipeline):
        return [
            part
            for _, step in teacher.steps
            if step is not None and not isinstance(step, str)  # passthrough
            for part in _steps(step)
        ] or [None]
    return [teacher]


def _behind(inputs: Standardiser, teacher: Any, X: np.ndarray) -> MLPClassifier:
    """The network that takes ``inputs(u)``, and says of it what the teacher says of u.

    Its transformers are ``t(u) = M (u - m) / s + c``, read off at the mean m and one
    deviation s from it: there nothing cancels. They join the first layer.
    """
    *transformers, network = _steps(teacher)
    units = Standardiser.of(X) if transformers else inputs

    def through(U: Any) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            for transformer in transformers:
                U = transformer.transform(U)
        return np.asarray(U.toarray() if issparse(U) else U, dtype=np.float64)

    c, *columns = through(units.undo(np.eye(X.shape[1] + 1, X.shape[1], -1)))
    M = np.asarray(columns) - c
    Z = through(X)
    if not np.max(np.abs(units(X) @ M + c - Z)) <= AFFINE * (1 + np.max(np.abs(Z))):
        raise InputError(
            f"the steps of the teacher before its network, {transformers!r}, are no affine map of "
            "X; give it the transformed X, and its network alone as the teacher"
        )
    c = c + (inputs.mean - units.mean) / units.scale @ M
    M = M * (inputs.scale / units.scale)[:, None]
    joined = copy.copy(network)
    (W, *weights), (b, *shifts) = network.coefs_, network.intercepts_
    joined.coefs_, joined.intercepts_ = [M @ W, *weights], [c @ W + b, *shifts]
    return joined
