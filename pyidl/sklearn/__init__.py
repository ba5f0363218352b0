"""Estimators for scikit-learn 1.6 and newer, the extra `sklearn`."""

from pyidl.sklearn.implicit import ImplicitClassifier, ImplicitRegressor
from pyidl.sklearn.sim import SIMClassifier

__all__ = ["ImplicitClassifier", "ImplicitRegressor", "SIMClassifier"]
