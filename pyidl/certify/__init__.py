"""Statements about models.

Certificates at given solutions, and an equivalent model whose row sums certify it.
"""

from pyidl.certify.local import LocalCertificate, certify_solution
from pyidl.certify.rescaling import rescale

__all__ = ["LocalCertificate", "certify_solution", "rescale"]
