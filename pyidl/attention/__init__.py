"""Attention whose queries, keys and values hear its own output.

Maps, cell, head, condition, certificate.
"""

from pyidl.attention.certify import AttentionCertificate, certify_attention
from pyidl.attention.head import ImplicitAttentionHead
from pyidl.attention.maps import (
    Attention,
    BoundedSoftmax,
    KernelAttention,
    Softmax,
)
from pyidl.attention.transformer import ImplicitTransformerBlock
from pyidl.attention.wellposed import AttentionBall

__all__ = [
    "Attention",
    "AttentionBall",
    "AttentionCertificate",
    "BoundedSoftmax",
    "certify_attention",
    "ImplicitAttentionHead",
    "ImplicitTransformerBlock",
    "KernelAttention",
    "Softmax",
]
