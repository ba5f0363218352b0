"""The attention head beside other ways to attend.

A step beside one-shot attention in NumPy, tiles, decoding, and the original scheme,
unrolled in torch.
"""

import time
import tracemalloc

import numpy as np

from pyidl import BoundedSoftmax, ImplicitAttentionHead, KernelAttention, Softmax
from pyidl.attention.cell import AttentionCell, parts
from pyidl.attention.decoding import Cache
from pyidl.attention.fourblocks import from_four_blocks, pull_four_blocks
from pyidl.attention.weighted_mean import Mask
from pyidl.equilibrium import equilibrium

SHAPES = ((32, 4, 64, 16), (8, 4, 256, 32), (1, 8, 1024, 64))
MAPS = (Softmax(), BoundedSoftmax(), KernelAttention())


def draw(shape, attention):
    """A cell, its injection Z, and a cotangent."""
    (m, H, T, h), rng = shape, np.random.default_rng(0)
    R = (rng.normal(size=(H, h, 3 * h)) * 0.3 / h).astype("f4")
    Z, G = (rng.normal(size=(m, H, T, width)).astype("f4") for width in (3 * h, h))
    return AttentionCell(R, attention, Mask(causal=True)), Z, G


class OneShot:
    """Causal softmax attention and its VJP.

    A sample after the other, so that weights stay in the cache, and no more passes than
    needed.
    """

    def __init__(self, K, Q, V):
        self.K, self.Q, self.V = (np.ascontiguousarray(part) for part in (K, Q, V))
        (m, H, T, h) = K.shape
        self.tau, self.hidden = (
            np.float32(h**-0.5),
            np.where(np.tri(T, dtype=bool), 0, -np.inf).astype("f4"),
        )
        self.work, self.E = np.empty((H, T, T), "f4"), np.empty((m, H, T, T), "f4")
        self.s, self.out = np.empty((m, H, T, 1), "f4"), np.empty_like(self.V)
        self.forward(self.E)

    def forward(self, keep=None):
        for i in range(len(self.K)):
            E = np.matmul(
                self.tau * self.Q[i], self.K[i].mT, out=self.work if keep is None else keep[i]
            )
            E += self.hidden
            E -= E.max(axis=-1, keepdims=True)
            np.exp(E, out=E)
            self.s[i] = 1 / E.sum(axis=-1, keepdims=True)
            np.matmul(E, self.V[i], out=self.out[i])
        self.out *= self.s
        return self.out

    def vjp(self, G):
        gK, gQ, gV = (np.empty_like(self.V) for _ in range(3))
        G = G * self.s
        for i in range(len(self.K)):
            M = np.matmul(G[i], self.V[i].mT, out=self.work)
            M -= (G[i] * self.out[i]).sum(axis=-1, keepdims=True)
            M *= self.E[i]
            np.matmul(M, self.K[i], out=gQ[i])
            np.matmul(M.mT, self.Q[i], out=gK[i])
            np.matmul(self.E[i].mT, G[i], out=gV[i])
        gQ *= self.tau
        gK *= self.tau
        return gK, gQ, gV


def steps(alternate):
    """One step ``att(X R + Z)`` and one adjoint step ``g + P(L) R^T``.

    Beside one-shot attention, from [K Q V] and from X R + Z.
    """
    print(
        "\nattention: a solver's step / one-shot softmax attention in NumPy, mask, "
        "exp and normalisation included; float32, causal"
    )
    for shape in SHAPES:
        for attention in MAPS:
            cell, Z, G = draw(shape, attention)
            forward, X, R = cell.bind(Z), 0.1 * G, cell.R
            solution = equilibrium(cell, Z)[1].forward
            adjoint, plain = cell.linearize(solution, Z, G), OneShot(*parts(X @ R + Z))
            assert type(attention) is not Softmax or np.allclose(
                plain.out, forward.pre(X), atol=1e-5
            )
            runs = {
                "step": lambda: forward.pre(X),
                "attention": plain.forward,
                "product": lambda: X @ R + Z,
                "adjoint": lambda: adjoint.pre(G),
                "vjp": lambda: plain.vjp(G),
                "product back": lambda: np.concatenate((G, G, G), axis=-1) @ R.mT + G,
            }
            low = {name: 1e3 * median for name, (median, _) in alternate(runs, 9).items()}
            a, b, p, c, d, q = low.values()
            print(
                f"    {shape!s:17s} {type(attention).__name__:15s} forward {a:6.2f} / {b:6.2f} "
                f"ms = {a / b:.2f}   "
                f"adjoint {c:6.2f} / {d:6.2f} ms = {c / d:.2f}   both {(a + c) / (b + d):.2f}   "
                f"both, one-shot with its products by R and R^T {(a + c) / (b + d + p + q):.2f}"
            )


def tiling(alternate):
    """Time and peak memory of a step and an adjoint step, T = 2048.

    Keys are visited all at once or in tiles.
    """
    shape = (1, 4, 2048, 32)
    rows, runs, peaks = float(np.prod(shape)) * 4, {}, {}
    for tile in (2048, 512, 128, 32):
        cell, Z, G = draw(shape, BoundedSoftmax(tile=tile))

        def run(cell=cell, Z=Z, G=G):
            return cell.at(0.1 * G, Z).vjp(G)

        runs[f"tile {tile}" if tile < 2048 else "one tile"] = run
        tracemalloc.start()
        run()
        peaks[list(runs)[-1]] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    times = alternate(runs, 5)
    print(
        f"\nattention: tiles, shape {shape}, forward and VJP; peak memory, "
        f"and in states of {rows / 2**20:.0f} MiB"
    )
    for name, (median, _) in times.items():
        ratio, peak = median / times["one tile"][0], peaks[name]
        print(
            f"    {name:10s} {1e3 * median:7.1f} ms = {ratio:.2f} x   "
            f"{peak / 2**20:6.1f} MiB = {peak / rows:5.1f} states"
        )


def decoding(alternate):
    """Time of one more token with a cache, by the length of the prefix.

    Beside the whole sequence anew.
    """
    print("\nattention: one more token, 4 heads of 32, from the cache / all tokens anew")
    rng, head = (
        np.random.default_rng(0),
        ImplicitAttentionHead(64, 32, num_heads=4, attention=BoundedSoftmax(), rng=0),
    )
    cell, counts = head._cell(Mask(True)), (128, 256, 512, 1024, 2048, 4096, 8192)
    U = rng.normal(size=(1, counts[-1] + 1, 64)).astype("f4")
    runs, whole = {}, {}
    for n in counts:
        N = head._inject(U[:, :n])
        if n <= 2048:
            start = time.perf_counter()
            X = head(U[:, :n])[1].forward.value
            whole[n] = time.perf_counter() - start
            N = N + cell.feed(X)  # beyond, any numbers of that size will do
        K, _, V = parts(N)
        cache = Cache(K, cell.attention.values(V))
        if n in (128, 256):
            apart = np.abs(head.step(U[:, n], cache)[0] - head.predict(U[:, : n + 1])[:, -1]).max()
            assert apart < 1e-5, apart
        runs[n] = lambda n=n, cache=cache: head.step(U[:, n], cache)
    times = {n: median for n, (median, _) in alternate(runs, 9, calls=5).items()}
    slope, base = np.polyfit(counts, list(times.values()), 1, w=1 / np.array(list(times.values())))
    for n, t in times.items():
        anew = f"{1e3 * whole[n]:8.1f} ms" if n in whole else "          -"
        print(
            f"    prefix {n:5d}  {1e3 * t:6.2f} ms / {anew}   time / line "
            f"{t / (base + slope * n):.2f}"
        )
    print(f"    the line: {1e3 * base:.2f} ms + {1e6 * slope:.2f} us a token of the prefix")


def torch_original(attention, A, B, U, G, fixed):
    """The head of the literature: X <- post(X A + U B) from X = 0.

    Unrolled, and differentiated by autograd. Two steps, or until `fixed`.
    """
    import torch

    A, B = (torch.tensor(a, requires_grad=True) for a in (A, B))
    U, G, h = torch.tensor(U[:, None]), torch.tensor(G), A.shape[-1] // 4
    seen = torch.ones(U.shape[2], U.shape[2], dtype=torch.bool).tril()

    def attend(k, q, v):
        if isinstance(attention, Softmax):
            Z = (q @ k.mT * h**-0.5).masked_fill(~seen, -torch.inf)
            return torch.softmax(Z, -1) @ v
        far = (q * q).sum(-1, keepdim=True) + (k * k).sum(-1)[..., None, :] - 2 * q @ k.mT
        E = torch.exp(-attention.scale(h) * far.clamp(min=0)) * seen
        return E / (attention.c + E.sum(-1, keepdim=True)) @ (v / torch.sqrt(1 + v * v))

    def run():
        A.grad = B.grad = None
        Z, X, count = U @ B, torch.zeros(G.shape[0], *A.shape[:1], U.shape[2], 4 * h), 0
        while True:
            k, q, v, _ = (X @ A + Z).split(h, -1)
            new, count = torch.cat((k, q, v, attend(k, q, v)), -1), count + 1
            moved = float((new - X).detach().abs().max()) if fixed else 0
            X = new
            if count == 200 or (moved <= fixed if fixed else count == 2):
                break
        X[..., 3 * h :].backward(G)
        return X.detach()[..., 3 * h :].numpy(), A.grad.numpy(), B.grad.numpy(), count

    return run


def original(alternate):
    """Outputs and gradients of A and B, beside a float64 fixed point.

    From the parameters of the literature: row sums of A 0.95.
    """
    import torch

    (m, H, T, h), e, rng = (8, 2, 128, 32), 64, np.random.default_rng(0)
    A, B = (rng.normal(size=(H, rows, 4 * h)) * (2 / (rows + 4 * h)) ** 0.5 for rows in (4 * h, e))
    A *= 0.95 / np.abs(A).sum(axis=2).max(axis=1)[:, None, None]
    U, G = rng.normal(size=(m, T, e)), rng.normal(size=(m, H, T, h))
    small = [a.astype("f4") for a in (A, B, U, G)]
    for attention in (Softmax(), KernelAttention()):

        def ours(A, B, U, G, attention=attention):
            params = from_four_blocks(A, B)
            cell, Z = (
                AttentionCell(params["R"], attention, Mask(causal=True)),
                U[:, None] @ params["S"],
            )
            X, pull = equilibrium(cell, Z)
            P, grads = pull(G)
            grads["S"] = (U[:, None].mT @ P).sum(axis=0)
            pulled = pull_four_blocks(A, B, grads)
            return X, pulled["A"], pulled["B"], int(pull.forward.n_iter.max())

        exact = ours(A, B, U, G)
        runs = {"pyidl": lambda ours=ours: ours(*small)}
        runs["original, two steps"] = torch_original(attention, *small, None)
        runs["original, to 1e-6"] = torch_original(attention, *small, 1e-6)
        times = alternate(runs, 7)
        print(
            f"\nattention: {type(attention).__name__}, {(m, H, T, h)}, e {e}: "
            f"beside the original in torch {torch.__version__}"
        )
        for name, run in runs.items():
            found = run()
            errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, exact[:3])]
            text = "   ".join(
                f"{what} {error:.1e}" for what, error in zip(("outputs", "A", "B"), errors)
            )
            print(
                f"    {name:20s} {1e3 * times[name][0]:8.1f} ms   {found[3]:3d} steps   "
                f"largest relative error of {text}"
            )


def attention(alternate):
    """All four parts: steps, tiles, decoding, the original scheme."""
    for part in (steps, tiling, decoding, original):
        part(alternate)
