r"""Perceptrons of scikit-learn as implicit models.

    u' = s u + t            scalers of a pipeline, one after the other
    x_1 = phi(W_1 u' + b_1),  x_l = phi(W_l x_(l-1) + b_l),  y = W_L x_(L-1) + b_L

The scalers are folded into the first layer: ``W_1 diag(s)`` and ``b_1 + W_1 t``. The
rest is `pyidl.compose.to_implicit`.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from pyidl.arrays.backend import to_numpy
from pyidl.compose import to_implicit as of_layers
from pyidl.compose.perceptron import layers_of_perceptron, linear
from pyidl.errors import InputError, expect
from pyidl.layers import ImplicitModel, Sequential

__all__ = ["to_implicit"]


def to_implicit(estimator: Any) -> ImplicitModel:
    """A fitted perceptron, perhaps behind scalers, as one implicit model.

    A is strictly block triangular, and a solve is one pass through the layers.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or Pipeline that ends with one
        Fitted. Before it `StandardScaler`, `MinMaxScaler` without clipping and
        `MaxAbsScaler`.

    Returns
    -------
    ImplicitModel
        Its outputs are those of the perceptron before its `out_activation_`: for a
        classifier what goes into the softmax, or with two classes into the logistic
        function. In the dtype of the perceptron, float32 if it was fitted to such data.

    Raises
    ------
    InputError
        If a step is none of these; it is named.
    sklearn.exceptions.NotFittedError
        If one is not fitted.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> U, Y = load_diabetes(return_X_y=True)
    >>> network = MLPRegressor(hidden_layer_sizes=(8, 5), tol=10.0, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), network).fit(U, Y)
    >>> model = to_implicit(pipeline)
    >>> bool(np.allclose(model.predict(U)[:, 0], pipeline.predict(U)))
    True
    >>> model.hidden_dim, model.certificate().proven
    (13, True)
    """
    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    parts = [step for _, step in steps if step not in (None, "passthrough")]
    network = parts.pop() if parts else None
    cure = "give a fitted perceptron of scikit-learn, or a Pipeline that ends with one"
    expect("estimator", network, (MLPClassifier, MLPRegressor), cure)
    check_is_fitted(network)
    first, *rest = layers_of_perceptron(network)
    W, b = (to_numpy(first.params[key]).astype(np.float64) for key in "Wb")
    for scaler in reversed(parts):  # W (s v + t) + b
        scale, shift = _affine(scaler)
        W, b = W * scale, b + W @ np.broadcast_to(shift, W.shape[1:])
    return of_layers(Sequential(linear(W, b, first.dtype), *rest))


def _affine(scaler: Any) -> tuple[Any, Any]:
    """The s and t of ``u -> s u + t``, entry by entry."""
    expect(
        "a step before the perceptron",
        scaler,
        (StandardScaler, MinMaxScaler, MaxAbsScaler),
        "use StandardScaler, MinMaxScaler or MaxAbsScaler, which are affine entry by entry, or "
        "convert the perceptron alone",
    )
    check_is_fitted(scaler)
    if isinstance(scaler, MinMaxScaler):
        if scaler.clip:
            raise InputError(
                "MinMaxScaler(clip=True) is no affine map; use clip=False, or convert the "
                "perceptron alone"
            )
        return scaler.scale_, scaler.min_
    scale = 1.0 if scaler.scale_ is None else 1.0 / scaler.scale_
    mean = getattr(scaler, "mean_", None)
    return scale, 0.0 if mean is None or not scaler.with_mean else -mean * scale
