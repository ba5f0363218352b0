"""What a classifier says, from one logit a class.

``P = softmax(Y)``, and for two classes the log-odds ``Y_2 - Y_1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin

from pyidl.activations import softmax
from pyidl.errors import InputError

__all__ = ["Answers"]


class Answers(ClassifierMixin):  # type: ignore[misc]
    """The methods of a classifier that has `classes_` and gives logits."""

    classes_: np.ndarray
    _raw: Callable[[Any], np.ndarray]
    """One logit a class, (m, classes); checks X."""

    def _tell_apart(self, classes: np.ndarray) -> None:
        """Set `classes_`, if there are two or more."""
        if len(classes) < 2:
            got = f"{len(classes)} class: {classes.tolist()}"
            raise InputError(
                f"{type(self).__name__} tells classes apart, and got {got}; at least two are needed"
            )
        self.classes_ = classes

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (m, classes).

        For two classes their difference (m,), which is the log-odds of the second.
        """
        Y = self._raw(X)
        return Y[:, 1] - Y[:, 0] if len(self.classes_) == 2 else Y

    def predict_proba(self, X: Any) -> np.ndarray:
        """``softmax`` of the logits, (m, classes), in the order of `classes_`."""
        return np.asarray(softmax.phi(self._raw(X)))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """``log softmax``, also where a probability is too small for a float."""
        Y = self._raw(X)
        Y = Y - Y.max(axis=1, keepdims=True)
        return np.asarray(Y - np.log(np.exp(Y).sum(axis=1, keepdims=True)))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of every sample."""
        best = self._raw(X).argmax(axis=1)  # first: whether it is fitted at all
        return np.asarray(self.classes_[best])
