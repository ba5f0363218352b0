"""What a matrix is to the solvers: a linear map of rows.

Samples are rows, so the forward pass multiplies by A^T from the right, and its adjoint,
the same thing with A transposed, by A.
"""

from __future__ import annotations

from typing import Any, Protocol

from pyidl.arrays.backend import is_array, namespace

__all__ = ["Matrix", "product"]


class Matrix(Protocol):
    """A linear map of rows, ``x -> x A^T``, and its transpose.

    `Full`, `Sparse`, `LowRank` and `Tiled` are such maps. One of your own needs no base
    class, only these methods; the solvers that want more than products (`Jacobi`,
    `Newton`, `Dense`) call `diagonal`, `off_diagonal` and `dense`.

    Examples
    --------
    A diagonal matrix, given by its diagonal:

    >>> class Diagonal:
    ...     def __init__(self, d):
    ...         self.d = d
    ...     def rows(self, x, out=None):
    ...         return np.multiply(x, self.d, out=out)
    ...     @property
    ...     def T(self):
    ...         return self
    ...     def grads(self, name, v, x):
    ...         return {name: np.sum(v * x, axis=0)}
    ...     def dense(self):
    ...         return np.diag(self.d)
    ...     def diagonal(self):
    ...         return self.d
    ...     def off_diagonal(self, scale):
    ...         return Diagonal(0.0 * self.d)
    >>> from pyidl import activations, solvers
    >>> from pyidl.solvers.problem import Affine
    >>> A = Diagonal(np.array([0.5, 0.2]))
    >>> solvers.Picard()(Affine(A, np.ones((1, 2)), activations.relu)).value.round(9)
    array([[2.  , 1.25]])
    """

    def rows(self, x: Any, out: Any = None) -> Any:
        """``x A^T``.

        Parameters
        ----------
        x : array, shape (m, c)
            One sample a row. B and D meet inputs in compressed rows, too.
        out : array, shape (m, r), optional
            Where the product goes; not x itself.

        Returns
        -------
        array, shape (m, r)
            A new array, or `out`.
        """
        ...

    @property
    def T(self) -> Matrix:
        """The transpose, without a copy."""
        ...

    def grads(self, name: str, v: Any, x: Any) -> dict[str, Any]:
        """Gradients of ``sum(v * (x A^T))``.

        Parameters
        ----------
        name : str
            What the parameter is called: "A", "B", ...
        v : array, shape (m, r)
            The cotangent of the product.
        x : array, shape (m, c)
            What was multiplied.

        Returns
        -------
        dict of str to array
            By the names of the arrays that make up the parameter: "A", or "L" and "R".
        """
        ...

    def dense(self) -> Any:
        """The whole matrix, (r, c), as one array."""
        ...

    def diagonal(self) -> Any:
        """``A_ii``, shape (n,)."""
        ...

    def off_diagonal(self, scale: Any) -> Matrix:
        """``diag(scale) (A - diag(A))``, scale of shape (n,).

        What the Jacobi splitting iterates with.
        """
        ...


def product(a: Any, b: Any, out: Any) -> Any:
    """``a b``, into `out` if it is given.

    One of them may be sparse, in compressed rows: then SciPy multiplies.
    """
    if not (is_array(a) and is_array(b)):
        if out is None:
            return a @ b
        out[...] = a @ b
        return out
    if a.shape[1] == 1:  # an outer product, which BLAS takes twice the time for
        return a * b if out is None else namespace(a).multiply(a, b, out=out)
    return a @ b if out is None else namespace(a).matmul(a, b, out=out)
