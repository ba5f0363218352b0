"""pyidl and its peers behind one interface, with gradients of A, B and U.

``run(forward tolerance, adjoint tolerance) -> (x, dA)``.
"""

import functools
import warnings

import numpy as np

from pyidl import activations
from pyidl.cells import AffineCell
from pyidl.equilibrium import equilibrium
from pyidl.matrices.full import Full
from pyidl.matrices.growth import with_gains
from pyidl.solvers import Anderson, Auto, Jacobi, Picard


def pyidl_by(solver):
    """The structure of A is read anew in every call, as if the parameters had just been set."""

    def build(case):
        def run(forward, adjoint):
            cell = AffineCell(with_gains(Full(case.A)), Full(case.B), None, activations.relu)
            x, pull = equilibrium(
                cell, case.U, forward=solver.at(forward), adjoint=solver.at(adjoint)
            )
            return x, pull(case.G)[1]["A"]

        return run

    return build


def numpy_picard(case):
    """What one writes without a library: stop when the whole batch has converged."""

    def run(forward, adjoint):
        A, Z = case.A, case.U @ case.B.T
        x = np.zeros_like(Z)
        for _ in range(2000):  # a tolerance below rounding is never met
            new = np.maximum(x @ A.T + Z, 0)
            if np.abs(new - x).max() < forward:
                break
            x = new
        S = ((x @ A.T + Z) > 0).astype(x.dtype)
        v = np.zeros_like(x)
        for _ in range(2000):  # a tolerance below rounding is never met
            new = S * (v @ A + case.G)
            if np.abs(new - v).max() < adjoint * np.abs(case.G).max():
                break
            v = new
        _ = (v.T @ case.U, v @ case.B)
        return x, v.T @ x

    return run


def torchidl(case):
    import torch
    from torchidl.implicit_function import ImplicitFunction

    warnings.simplefilter("ignore")
    A, B, U = (torch.tensor(a, requires_grad=True) for a in (case.A, case.B, case.U.T.copy()))
    G, x0 = torch.tensor(case.G.T.copy()), torch.zeros(case.G.T.shape)

    def run(forward, adjoint):
        ImplicitFunction.set_parameters(
            mitr=2000,
            grad_mitr=2000,
            tol=forward,
            grad_tol=adjoint * float(np.abs(case.G).max()),
            kappa=0.99,
        )
        A.grad = B.grad = U.grad = None
        x = ImplicitFunction.apply(A, B, x0, U)
        x.backward(G)
        return x.detach().numpy().T, A.grad.numpy()

    return run


def torchdeq(forward_solver, backward_solver):
    def build(case):
        import torch
        from torchdeq import get_deq

        A, B, U = (torch.tensor(a, requires_grad=True) for a in (case.A, case.B, case.U))
        G, x0 = torch.tensor(case.G), torch.zeros(case.G.shape)

        def run(forward, adjoint):
            deq = get_deq(
                f_solver=forward_solver, b_solver=backward_solver, f_max_iter=2000, b_max_iter=2000,
                f_tol=forward * case.G.size**0.5, b_tol=adjoint * float(np.linalg.norm(case.G)),
                f_stop_mode="abs", b_stop_mode="abs", ift=True,
            )  # fmt: skip
            A.grad = B.grad = U.grad = None
            Z = U @ B.T
            x = deq(lambda x: torch.relu(x @ A.T + Z), x0)[0][-1]
            x.backward(G)
            return x.detach().numpy(), A.grad.numpy()

        return run

    return build


def jaxopt(solver_name, linear_name):
    def build(case):
        import jax
        import jax.numpy as jnp
        from jaxopt import AndersonAcceleration, FixedPointIteration, linear_solve

        arrays = tuple(map(jnp.asarray, (case.A, case.B, case.U)))
        G, x0 = jnp.asarray(case.G), jnp.zeros(case.G.shape, jnp.float32)

        def f(x, A, B, U):
            return jnp.maximum(x @ A.T + U @ B.T, 0)

        @functools.cache
        def compiled(forward, adjoint):
            solve = functools.partial(getattr(linear_solve, linear_name), tol=adjoint, maxiter=2000)
            size = forward * case.G.size**0.5
            if solver_name == "FixedPointIteration":
                solver = FixedPointIteration(f, tol=size, maxiter=2000, implicit_diff_solve=solve)
            else:
                solver = AndersonAcceleration(
                    f, tol=size, maxiter=2000, history_size=5, implicit_diff_solve=solve
                )

            def value(A, B, U):
                x = solver.run(x0, A, B, U).params
                return jnp.sum(x * G), x

            return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))

        def run(forward, adjoint):
            (_, x), grads = jax.block_until_ready(compiled(forward, adjoint)(*arrays))
            return np.asarray(x), np.asarray(grads[0])

        return run

    return build


PYIDL = {
    "pyidl Auto": pyidl_by(Auto()),
    "pyidl Picard": pyidl_by(Picard(max_iter=20000)),
    "pyidl Jacobi": pyidl_by(Jacobi(max_iter=20000)),
    "pyidl Anderson": pyidl_by(Anderson()),
    "pyidl Anderson of Jacobi": pyidl_by(Anderson(splitting=True)),
}
PEERS = {
    "NumPy Picard": numpy_picard,
    "torchidl": torchidl,
    "torchdeq fixed point": torchdeq("fixed_point_iter", "fixed_point_iter"),
    "torchdeq Anderson": torchdeq("anderson", "anderson"),
    "jaxopt fixed point, CG": jaxopt("FixedPointIteration", "solve_normal_cg"),
    "jaxopt fixed point, BiCGSTAB": jaxopt("FixedPointIteration", "solve_bicgstab"),
    "jaxopt Anderson, CG": jaxopt("AndersonAcceleration", "solve_normal_cg"),
    "jaxopt Anderson, BiCGSTAB": jaxopt("AndersonAcceleration", "solve_bicgstab"),
}
