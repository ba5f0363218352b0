"""Certificates at given solutions, and an equivalent model that row sums certify."""

from pyidl.certify.local import LocalCertificate, certify_solution
from pyidl.certify.rescaling import rescale

__all__ = ["LocalCertificate", "certify_solution", "rescale"]
