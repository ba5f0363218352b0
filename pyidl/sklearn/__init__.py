"""Estimators for scikit-learn 1.6 and newer, the extra `sklearn`.

`ImplicitSequenceClassifier` and `ImplicitSequenceRegressor` are there where
`pyidl.recurrent` is, `SIMClassifier` where `pyidl.sim` is.
"""

from importlib.util import find_spec

from pyidl.sklearn.implicit import ImplicitClassifier, ImplicitRegressor

__all__ = ["ImplicitClassifier", "ImplicitRegressor"]

if find_spec("pyidl.recurrent"):
    from pyidl.sklearn.recurrent import (
        ImplicitSequenceClassifier as ImplicitSequenceClassifier,
    )
    from pyidl.sklearn.recurrent import (
        ImplicitSequenceRegressor as ImplicitSequenceRegressor,
    )

    __all__ += ["ImplicitSequenceClassifier", "ImplicitSequenceRegressor"]

if find_spec("pyidl.sim"):
    from pyidl.sklearn.sim import SIMClassifier as SIMClassifier

    __all__ += ["SIMClassifier"]
