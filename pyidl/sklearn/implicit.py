r"""Implicit models as estimators of scikit-learn.

``x = phi(A x + B u + b)``, and from ``y = C x + D u + d``.

    ImplicitClassifier  one logit y_k for each class, probabilities softmax(y);
                        minimises the cross-entropy
    ImplicitRegressor   the targets themselves; minimises their squared error, in
                        units of their deviation

plus ``alpha / 2`` times the squares of A (or L and R), B, C and D, by Adam, projected
into the constraint after every step. Both train by `pyidl.training.recipe`: inputs and
targets are standardised within, and the fitted `model_` takes the inputs as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import validate_data

from pyidl.sklearn.trained import Labelled, Trained, Valued, as_activation
from pyidl.training.recipe import Data, Standardised

__all__ = ["ImplicitClassifier", "ImplicitRegressor"]


@dataclass(eq=False, repr=False)
class _Implicit(Trained):
    """Tables (m, p), sparse or not, and an `ImplicitModel`."""

    _kept: ClassVar[tuple[str, ...]] = (
        "hidden_dim",
        "activation",
        "constraint",
        "rank",
        "standardize",
        "dtype",
    )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.readout == "trained"
        return tags

    def _inputs(self, X: Any) -> Any:
        return validate_data(self, X, reset=False, dtype=np.float64, accept_sparse="csr")

    def _pair(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        checks = {"dtype": np.float64, "accept_sparse": "csr", **self._checks}
        X, y = validate_data(self, X, y, reset=reset, **checks)
        return X, y

    def _automatic(self, m: int) -> int:
        return 200  # as in MLPClassifier

    def _build(self, data: Data, classes: int | None) -> Standardised:
        return Standardised.build(
            data,
            classes=classes,
            standardise=self.standardize,
            hidden_dim=self.hidden_dim,
            activation=as_activation(self.activation),
            constraint=self.constraint,
            rank=self.rank,
            dtype=self.dtype,
            rng=self._rng,
        )


@dataclass(eq=False, repr=False)
class ImplicitClassifier(_Implicit, Labelled):
    """A classifier whose hidden state is the solution of ``x = phi(A x + B u + b)``.

    Its logits are ``C x + D u + d``. X is a table (m, p), or a sparse matrix of SciPy,
    which is never filled in.

    Parameters
    ----------
    hidden_dim : int
        n, the number of hidden units.
    activation : str or Activation
        phi, by its name in `pyidl.activations`, or itself.
    constraint : Constraint, optional
        Where solutions are certain to exist; ``InfNorm(0.5)`` if None, under which
        solves take few steps (6 to 10 in training; under 0.9, 9 to 13). More feedback
        was no better on the five tables of docs/estimators.md together.
    rank : int, optional
        Of A = L R^T, for fewer parameters.
    alpha : float, optional
        Weight of the squares of all matrices, ``alpha / 2 (|A|^2 + |B|^2 + |C|^2 +
        |D|^2)``, added to the mean loss. (That of `MLPClassifier` is divided by the
        number of samples.) If None, ``5 / max(m, 200)`` for the m samples of a call.
    batch_size : int, "auto" or None
        Samples a step; "auto" is 200, or all of fewer. With one batch, and without
        `early_stopping`, a weight of 2 is the same as a sample that is there twice (of
        more than 200 with the same `alpha`). A weight of 0 is always the same as one
        that is not there.
    learning_rate : float or Schedule
        Of Adam. A number is where it starts: it falls to 0 along half a cosine within
        the epochs of every `fit`, so that few are enough; in `partial_fit`, whose end
        is not known, it stays. A schedule of `pyidl.optim` counts steps and is taken as
        it is; ``Constant(1e-2)`` stays where it is.
    max_iter : int, optional
        Largest number of epochs; if None, 50, or as many as make 150 steps. A
        `sklearn.exceptions.ConvergenceWarning` says that it was reached, if the rate is
        a schedule, or if the last `n_iter_no_change` epochs had more than a hundredth
        of the whole fall of the loss.
    tol, n_iter_no_change : float, int
        Training ends when for `n_iter_no_change` epochs the loss was not lower, by more
        than `tol`, than the best so far. It returns to that best epoch, also from the
        last one. The loss is the mean of an epoch, with the penalty.
    readout : {"trained", "first", "only"}
        Whether C, D and d are trained like A, B and b; or solved for in closed form
        (`pyidl.training.readout`) before the training of all; or that alone, with A, B
        and b as they were drawn, which takes one solve and no epochs. With
        ``alpha=None`` their ridge is then the best for samples that are left out. Of
        labels the squares of +1 and -1 are fitted, and then scaled to logits. Sparse
        tables are refused, since centred ones are full. `partial_fit` is not there with
        "only".
    early_stopping : bool
        Whether to watch, instead, the mean loss of samples that are held out: without
        the penalty, ``history_["val_loss"]``. Every `fit` draws them anew;
        `partial_fit` holds none out.
    validation_fraction : float
        The share of held-out samples; it has of each label its share, if there are
        enough of each.
    standardize : bool
        Whether columns of X are shifted and scaled within, by their mean and deviation
        at the first call. Those of a sparse X are not shifted, and divided by their
        largest entry.
    warm_start : bool
        Whether `fit` goes on from the last fit: its parameters, its standardisation and
        the state of Adam. The rate may change in between; what the network is built
        from may not.
    random_state : int, RandomState or None
        Draws the parameters, the order of samples, and those held out.
    dtype : {"float64", "float32"}
        In which the model computes. (pyidl's own default is float32.)
    verbose : int
        1 shows progress.
    class_weight : dict, "balanced" or None
        ``{label: weight}``, 1 for a label that is not there; by these the weights of
        samples are multiplied. "balanced" gives every label of the call, together, the
        same weight; `partial_fit` refuses it.

    Attributes
    ----------
    classes_ : ndarray
        The labels.
    model_ : ImplicitModel
        The fitted model, for inputs that are not standardised.
    n_iter_ : int
        Epochs done.
    loss_curve_ : list of float
        The mean loss of every epoch.
    history_ : History
        Of the last call: steps of the solves, failed samples, seconds.
    readout_ : ReadOut
        Ridge, rank and errors of the last read-out in closed form, if there was one.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Raises
    ------
    ConvergenceError
        If more than a tenth of an epoch's samples, or any that are predicted, have no
        solution within tolerance; fewer are left out of the step and reported by a
        `pyidl.ConvergenceWarning`. Under the default constraint every sample has a
        solution.

    Notes
    -----
    What other libraries call epochs is `max_iter`; hidden_layer_sizes or units are
    `hidden_dim`; lr and learning_rate_init are `learning_rate`; weight_decay and l2 are
    `alpha`; patience is `n_iter_no_change`; kappa is ``constraint=InfNorm(kappa)``. The
    solver is always Adam.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = ImplicitClassifier(20, max_iter=100, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.9, classifier.model_.certificate().proven
    (True, True)
    """


@dataclass(eq=False, repr=False)
class ImplicitRegressor(_Implicit, Valued):
    """A regressor whose hidden state is the solution of ``x = phi(A x + B u + b)``.

    It predicts ``C x + D u + d``, and minimises the squared error, each target measured
    in units of its deviation at the first call. Parameters, attributes and errors as
    for `ImplicitClassifier`, without `class_weight` and `classes_`. X may be sparse
    there too; targets may be one column or several.

    Examples
    --------
    >>> X = np.linspace(-2, 2, 100)[:, None]
    >>> y = 100 + 50 * np.sin(3 * X[:, 0])
    >>> regressor = ImplicitRegressor(30, alpha=1e-4, tol=1e-3, max_iter=800)
    >>> regressor = regressor.set_params(random_state=0)
    >>> regressor.fit(X, y).score(X, y) > 0.9, regressor.model_.predict(X).shape
    (True, (100, 1))
    """
