"""A classifier that learns an implicit model from the states of a perceptron (SIM).

The teacher, a perceptron of scikit-learn, is trained on X and y. The model

    x = phi(A x + B u + b),    y = C x + D u + d

is the one that reproduces the teacher's pre-activations, states and logits on X with
the least mean loss and penalty (`pyidl.sim.fit`). No gradient passes through a fixed
point.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.neural_network import MLPClassifier
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


class SIMClassifier(Answers, BaseEstimator):  # type: ignore[misc]
    """A sparse, certified implicit model in place of a trained `MLPClassifier`.

    Parameters
    ----------
    teacher : MLPClassifier, optional
        Cloned and trained; ``MLPClassifier(random_state=random_state)`` if None. Its
        own `random_state` is set to that of the classifier where it has none.
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
        Whether the columns of X are shifted and scaled within, for the teacher as for
        the model.
    random_state : int, RandomState or None
        Handed to the teacher.
    dtype : {"float64", "float32"}
        In which the model computes.

    Attributes
    ----------
    classes_ : ndarray
        The labels.
    teacher_ : MLPClassifier
        The trained network; it takes standardised inputs.
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

    def __init__(
        self,
        teacher: Any = None,
        *,
        penalty: Penalty | None = None,
        relaxed: Penalty | None = None,
        constraint: Constraint | None = None,
        pattern: str | Pattern | np.ndarray | None = None,
        refit_rounds: int = 1,
        standardize: bool = True,
        random_state: Any = None,
        dtype: str = "float64",
    ) -> None:
        self.teacher = teacher
        self.penalty = penalty
        self.relaxed = relaxed
        self.constraint = constraint
        self.pattern = pattern
        self.refit_rounds = refit_rounds
        self.standardize = standardize
        self.random_state = random_state
        self.dtype = dtype

    def fit(self, X: Any, y: Any) -> Self:
        """Train the teacher on X (m, p), labels y (m,), and learn from its states."""
        with as_it_was(self):
            self._train(X, y)
        return self

    def _train(self, X: Any, y: Any) -> None:
        check_flags(self, "standardize")
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if not (self.teacher is None or isinstance(self.teacher, MLPClassifier)):
            raise InputError(
                f"teacher is {self.teacher!r}; use an MLPClassifier, or pyidl.sim.fit for other "
                "networks"
            )
        classes, T = np.unique(y, return_inverse=True)
        self._tell_apart(classes)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        teacher = MLPClassifier() if self.teacher is None else clone(self.teacher)
        if teacher.random_state is None:
            teacher.set_params(random_state=seed)
        self._inputs = Standardiser.of(X) if self.standardize else Standardiser.identity(X.shape[1])
        V = self._inputs(X)
        self.teacher_ = teacher.fit(V, T)
        result = sim.fit(
            self.teacher_,
            V,
            constraint=InfNorm(0.99) if self.constraint is None else self.constraint,
            penalty=sim.L1(1e-3) if self.penalty is None else self.penalty,
            relaxed=self.relaxed,
            pattern=self.pattern,  # type: ignore[arg-type]
            refit_rounds=self.refit_rounds,
            dtype=self.dtype,
        )
        self._network, self.report_ = result.model, result.report

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
