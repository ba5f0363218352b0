"""Embeddings: ``Y_it = W_k`` with k = U_it, row k of a table for token k.

And ``Y_it = U_it + P_t``, row t of a table for position t.

With E the matrix of zeros and ones, one row for each place of U and the 1 at its token,
``Y = E W``: linear in W, so that

    dW = E^T dY,  row k the sum of dY over the places of token k;    dP_t = sum_i dY_it.

A token is a name and no number, so it has no derivative. Source: Vaswani et al.,
"Attention is all you need", 2017, section 3.4; the learnt positions of Gehring et al.,
"Convolutional sequence to sequence learning", ICML 2017, section 3.1.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.batch import sum_rows
from pyidl.errors import InputError, is_whole
from pyidl.layers import initializers
from pyidl.layers.base import Call, Explicit, Layer, check_widths, finite_output
from pyidl.solvers.solution import OnFail
from pyidl.typing import Rng

__all__ = ["Embedding", "PositionEmbedding"]


@dataclass(eq=False, repr=False)
class Embedding(Layer):
    """``Y_it = W_k`` for the token k = U_it.

    Integers (m, T) become (m, T, embed_dim), or (m,) becomes (m, embed_dim).

    It stands in first place; its inputs are integers throughout, never cast to a real
    dtype. The pullback gives None for dU.

    Parameters
    ----------
    num_tokens, embed_dim : int
        W has shape (num_tokens, embed_dim); tokens are 0, ..., num_tokens - 1.
    dtype : {"float32", "float64"}
        That of W and of the output.
    rng : Generator, int or None
        Draws W, with variance 1 / embed_dim: rows have a length of about 1, and what
        residual branches add to them is heard.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import Embedding
    >>> layer = Embedding(10, 2, rng=0)
    >>> Y, pull = layer([[3, 1, 3], [3, 0, 0]])
    >>> dU, grads = pull(np.ones((2, 3, 2)))
    >>> Y.shape, dU, grads["W"][:4, 0]
    ((2, 3, 2), None, array([2., 1., 0., 3.], dtype=float32))
    """

    tokenwise = True

    num_tokens: int
    embed_dim: int
    _: KW_ONLY
    dtype: str = "float32"
    rng: InitVar[Rng] = None

    def _validate(self) -> None:
        check_widths(self, "num_tokens", "embed_dim")

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        return {"W": initializers.lecun_normal(generator, self.num_tokens, self.embed_dim)}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.num_tokens, self.embed_dim)}

    def _widths(self) -> tuple[None, int]:
        return None, self.embed_dim

    def _admit(self, U: Any) -> Any:
        """Check the tokens; they stay integers."""
        xp = self.xp
        # Refuses what is no array of numbers, or lives elsewhere.
        backend.as_real(U, name="U", xp=xp, dtype="float64")
        tokens = U if backend.is_array(U) else backend.from_host(xp, np.asarray(U))
        self._check(tokens)
        low, high = int(xp.min(tokens)), int(xp.max(tokens))
        if low < 0 or high >= self.num_tokens:
            raise InputError(
                f"tokens lie between {low} and {high}; "
                f"there are {self.num_tokens} tokens, 0, ..., {self.num_tokens - 1}"
            )
        return backend.astype(xp, tokens, "int64")

    def _check(self, U: Any) -> None:
        if not self.xp.isdtype(U.dtype, "integral"):
            raise InputError(
                f"U has dtype {U.dtype}; Embedding takes tokens: "
                "cast them to integers, and let no layer stand before it"
            )
        if U.ndim not in (1, 2) or U.size == 0:
            raise InputError(
                f"U has shape {U.shape}; Embedding takes tokens (m, T) or (m,) with m, T >= 1"
            )

    def _forward(self, U: Any, call: Call) -> tuple[Any, Explicit]:
        xp, W = self.xp, self.params["W"]
        places = xp.reshape(U, (-1,))
        Y = xp.reshape(xp.take(W, places, axis=0), (*U.shape, self.embed_dim))

        def backward(dY: Any, inputs: bool) -> tuple[None, dict[str, Any]]:
            rows = xp.reshape(dY, (-1, self.embed_dim))
            return None, {"W": sum_rows(xp, rows, places, self.num_tokens)}

        return Y, Explicit(Y, backward)


@dataclass(eq=False, repr=False)
class PositionEmbedding(Layer):
    """``Y_it = U_it + P_t``: tells what follows at which position t a row stands.

    (m, T, embed_dim) with T at most `block_size`.

    Parameters
    ----------
    block_size, embed_dim : int
        P has shape (block_size, embed_dim). Longer contexts are refused: there is
        nothing to add.
    dtype : {"float32", "float64"}
        In which everything is computed.
    rng : Generator, int or None
        Draws P, with variance 1 / embed_dim, as an `Embedding` its W.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> from pyidl import PositionEmbedding
    >>> Y, pull = PositionEmbedding(5, 2, rng=0)(np.ones((4, 3, 2)))
    >>> dU, grads = pull(np.ones((4, 3, 2)))
    >>> Y.shape, grads["P"][:, 0]
    ((4, 3, 2), array([4., 4., 4., 0., 0.], dtype=float32))
    """

    block_size: int
    embed_dim: int
    _: KW_ONLY
    dtype: str = "float32"
    rng: InitVar[Rng] = None

    def _validate(self) -> None:
        check_widths(self, "block_size", "embed_dim")

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        return {"P": initializers.lecun_normal(generator, self.block_size, self.embed_dim)}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"P": (self.block_size, self.embed_dim)}

    def _widths(self) -> tuple[int, int]:
        return self.embed_dim, self.embed_dim

    def _check(self, U: Any) -> None:
        if U.ndim != 3 or U.shape[2] != self.embed_dim or U.size == 0:
            raise InputError(
                f"U has shape {U.shape}; "
                f"PositionEmbedding takes (m, T, {self.embed_dim}) with m, T >= 1"
            )
        if U.shape[1] > self.block_size:
            raise InputError(
                f"U has {U.shape[1]} positions, the table {self.block_size}; "
                "shorten the context, or build the model with that block_size"
            )

    def start(self, m: int) -> int:
        """The number of tokens so far."""
        return 0

    def step(self, u: Any, cache: int, *, on_fail: OnFail = "raise") -> tuple[Any, int]:
        """``u + P_t`` for the next t."""
        u = backend.as_real(u, name="u", xp=self.xp, dtype=self.dtype)
        if not is_whole(cache):
            raise InputError(f"cache is {cache!r}; give what start(m) or the last step returned")
        if cache >= self.block_size:
            raise InputError(
                f"the cache holds {cache} tokens, the table {self.block_size} positions; "
                "start again from the last ones"
            )
        return finite_output(u + self.params["P"][cache, :], on_fail), cache + 1

    def _forward(self, U: Any, call: Call) -> tuple[Any, Explicit]:
        xp, P, T = self.xp, self.params["P"], U.shape[1]
        Y = U + P[:T, :]

        def backward(dY: Any, inputs: bool) -> tuple[Any, dict[str, Any]]:
            unused = xp.zeros_like(P[T:, :])
            return (dY if inputs else None), {"P": xp.concat([xp.sum(dY, axis=0), unused])}

        return Y, Explicit(Y, backward)
