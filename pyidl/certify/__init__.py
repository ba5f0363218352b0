"""Statements about models: certificates at given solutions, and an equivalent model whose row sums certify it."""

from pyidl.certify.attention import AttentionCertificate, certify_attention
from pyidl.certify.local import LocalCertificate, certify_solution
from pyidl.certify.scaling import rescale

__all__ = ["AttentionCertificate", "LocalCertificate", "certify_attention", "certify_solution", "rescale"]
