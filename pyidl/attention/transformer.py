"""A transformer block whose attention is a fixed point, composed of layers.

    z = x + Dropout(W_o head(LayerNorm(x))),
    y = z + Dropout(W_2 relu(W_1 LayerNorm(z) + b_1) + b_2),

with the normalisation inside the branches, so that an input has an open way through any
number of blocks.

Sources: Vaswani et al., "Attention is all you need", 2017; for the place of the
normalisation Xiong et al., "On layer normalization in the transformer architecture",
ICML 2020.
"""

from __future__ import annotations

from pyidl.arrays import backend
from pyidl.attention.head import ImplicitAttentionHead
from pyidl.attention.maps import Attention, KernelAttention
from pyidl.attention.wellposed import AttentionBall
from pyidl.errors import InputError
from pyidl.layers.base import check_width
from pyidl.layers.dropout import Dropout
from pyidl.layers.linear import Linear
from pyidl.layers.normalisation import LayerNorm
from pyidl.layers.residual import Residual
from pyidl.layers.sequential import Sequential
from pyidl.solvers import Solver
from pyidl.typing import Rng
from pyidl.wellposed import Unconstrained

__all__ = ["ImplicitTransformerBlock"]


def ImplicitTransformerBlock(
    embed_dim: int,
    num_heads: int,
    *,
    head_dim: int | None = None,
    mlp_dim: int | None = None,
    attention: Attention = KernelAttention(),  # noqa: B008 (frozen)
    causal: bool = True,
    block_size: int | None = None,
    dropout: float = 0.0,
    constraint: AttentionBall | Unconstrained = AttentionBall(),  # noqa: B008 (frozen)
    forward: Solver | None = None,
    adjoint: Solver | None = None,
    rank: int | None = None,
    dtype: str = "float32",
    rng: Rng = None,
) -> Sequential:
    """``z = x + W_o head(n(x))``, ``y = z + W_2 relu(W_1 n(z) + b_1) + b_2``.

    With two layer norms n, from (m, T, embed_dim) to the same shape. What is returned
    is a plain `Sequential` of two `Residual`: it is saved, certified and projected as
    such, and its parts can be taken out and exchanged.

    Parameters
    ----------
    embed_dim, num_heads : int
        Width of a token, and number of heads.
    head_dim : int, optional
        Width of a head; ``embed_dim / num_heads`` if left out, which must then be an
        integer.
    mlp_dim : int, optional
        Length of b_1; ``4 embed_dim`` if left out.
    dropout : float
        Rate of the `Dropout` at the end of either branch; 0 leaves it out.
    attention, causal, block_size, constraint, forward, adjoint, rank
        As for `ImplicitAttentionHead`.
    dtype : {"float32", "float64"}
        In which everything is computed.
    rng : Generator, int or None
        Draws the initial parameters.

    Returns
    -------
    Sequential

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import ImplicitTransformerBlock
    >>> block = ImplicitTransformerBlock(8, 2, block_size=5, rng=0)
    >>> Y, pull = block(np.ones((3, 5, 8)))
    >>> Y.shape, block.certificate().proven
    ((3, 5, 8), True)
    """
    embed_dim, num_heads = check_width("embed_dim", embed_dim), check_width("num_heads", num_heads)
    if head_dim is None and embed_dim % num_heads:
        raise InputError(
            f"embed_dim = {embed_dim} is no multiple of num_heads = {num_heads}; choose head_dim"
        )
    head_dim = embed_dim // num_heads if head_dim is None else check_width("head_dim", head_dim)
    mlp_dim = 4 * embed_dim if mlp_dim is None else check_width("mlp_dim", mlp_dim)
    generator = backend.as_generator(rng)
    head = ImplicitAttentionHead(
        embed_dim,
        head_dim,
        num_heads=num_heads,
        attention=attention,
        causal=causal,
        block_size=block_size,
        constraint=constraint,
        forward=forward,
        adjoint=adjoint,
        rank=rank,
        dtype=dtype,
        rng=generator,
    )
    mixed = Linear(num_heads * head_dim, embed_dim, dtype=dtype, rng=generator)
    wide = Linear(embed_dim, mlp_dim, dtype=dtype, rng=generator)
    narrow = Linear(mlp_dim, embed_dim, dtype=dtype, rng=generator)
    ends = [(Dropout(dropout),) if Dropout(dropout).rate else () for _ in range(2)]
    return Sequential(
        Residual(LayerNorm(embed_dim, dtype=dtype), head, mixed, *ends[0]),
        Residual(LayerNorm(embed_dim, dtype=dtype), wide, "relu", narrow, *ends[1]),
    )
