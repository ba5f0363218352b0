"""A task that needs iteration, and a head whose fixed point solves it.

``python examples/pointers.py [steps]``

Tokens form trees. Each says its name and the name of its parent; a root is its own
parent, and it alone says a value. The answer, at every token, is the value of its root:
a chain of pointers is to be followed, of a length that nobody tells. With q_i the name
of the parent of i, k_j the name of j, and a sharp attention, the head's equation is

    o_i = v_parent(i),    v_j = (the value, if j is a root) + rho o_j,

so at the fixed point a token h hops from its root holds rho^h times the value; rho < 1
is what makes it unique. Feedback through values alone, so it is certified for any
sharpness. One-shot attention, R = 0, sees one hop; a stack of such heads, one hop or a
few for each. Models learn from trees of at most HOPS hops, and are tried on chains that
are longer, and equally long: the size of a tree says nothing about which root is meant.
"""

import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

import pyidl
from pyidl import losses, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
TOKENS, ROOTS, VALUES, HOPS, WIDTH, BATCH = 24, 2, 4, 5, 24, 64
EMBED = 2 * TOKENS + VALUES  # a name, a parent's name, a value


def trees(m, rng, chains=False):
    """``(inputs, root's value, hops to the root)``.

    A token hangs below the last one or, as often, anywhere, at most HOPS deep; or the trees
    are `chains` of equal length, so that the size of a tree gives nothing away.
    """
    order, rows = np.argsort(rng.random((m, TOKENS)), axis=1), np.arange(m)
    parent, hops = order.copy(), np.zeros((m, TOKENS), int)  # in the order of their joining
    for t in range(ROOTS, TOKENS):
        pick = np.argmax(rng.random((m, t)) * (hops[:, :t] < HOPS), axis=1)
        pick = np.where((rng.random(m) < 0.5) & (hops[:, t - 1] < HOPS), t - 1, pick)
        pick = np.full(m, t - ROOTS) if chains else pick
        parent[:, t], hops[:, t] = order[rows, pick], hops[rows, pick] + 1
    # by name
    parent, hops = (
        np.take_along_axis(a, np.argsort(order, axis=1), axis=1) for a in (parent, hops)
    )
    root = parent
    for _ in range(4):  # 2^4 hops
        root = np.take_along_axis(root, root, axis=1)
    value = rng.integers(0, VALUES, (m, TOKENS))
    own = np.eye(VALUES)[value] * (hops == 0)[..., None]
    names = np.broadcast_to(np.eye(TOKENS), (m, TOKENS, TOKENS))
    U = np.concatenate([names, np.eye(TOKENS)[parent], own], axis=-1).astype("f4")
    return U, np.take_along_axis(value, root, axis=1), hops


def head(attention, ball, rng):
    return pyidl.ImplicitAttentionHead(
        EMBED, WIDTH, attention=attention, causal=False, block_size=TOKENS, constraint=ball, rng=rng
    )  # fmt: skip


def single(attention, ball):
    """A head, and a value read from its output; the normalisation undoes rho^h."""
    rng = np.random.default_rng(0)
    return pyidl.Sequential(
        head(attention, ball, rng), pyidl.LayerNorm(WIDTH), pyidl.Linear(WIDTH, VALUES, rng=rng)
    )


def stack(attention, ball, depth):
    """Heads one after another, each in a residual branch."""
    rng = np.random.default_rng(0)
    branches = [
        pyidl.Residual(head(attention, ball, rng), pyidl.Linear(WIDTH, EMBED, rng=rng))
        for _ in range(depth)
    ]
    return pyidl.Sequential(*branches, pyidl.LayerNorm(EMBED), pyidl.Linear(EMBED, VALUES, rng=rng))


def by_hand(attention, ball):
    """The weights of the docstring.

    Names on the axes, rho = 0.9 on the coordinates of the values.
    """
    S, R = np.zeros((1, EMBED, 3 * WIDTH), "f4"), np.zeros((1, WIDTH, 3 * WIDTH), "f4")
    k, q, v = (slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3))
    S[0, :TOKENS, k] = S[0, TOKENS : 2 * TOKENS, q] = 4 * np.eye(TOKENS, WIDTH)
    S[0, 2 * TOKENS :, v] = np.eye(VALUES, WIDTH)
    R[0, :VALUES, v] = 0.9 * np.eye(VALUES, WIDTH)
    model = head(attention, ball, 0)
    model.params = {"R": R, "S": S}
    return model


def tried(model, data):
    """The share of right answers, by hops; and the most steps that a solve took."""
    U, answer, hops = data
    Y, pull = model(U)
    right = np.argmax(pyidl.to_numpy(Y)[..., :VALUES], axis=-1) == answer
    steps = max(int(solution.n_iter.max()) for solution in pull.solutions)
    return np.array([right[hops == n].mean() for n in range(DEEPEST + 1)]), steps


def train(model, rate, steps, batches):
    optimizer = optim.Adam(optim.Cosine(rate, steps=steps, warmup=50), clip_norm=1.0)
    for U, answer, _ in batches:
        Y, pull = model(U)
        _, dY = losses.cross_entropy(Y, answer)
        model.params = model.project(optimizer.step(model.params, pull(dY, inputs=False)[1]))


DEEPEST = TOKENS // ROOTS - 1
test = trees(1000, np.random.default_rng(9), chains=True)
sharp, kernel = pyidl.BoundedSoftmax(tau=8.0), pyidl.KernelAttention(bandwidth=2.0)
feedback, none = pyidl.AttentionBall(0.95, theta=0.95), pyidl.AttentionBall(1e-12)
models = {
    "implicit, set by hand": (by_hand(sharp, feedback), None, 0),
    "implicit, learnt": (single(sharp, feedback), 1e-2, STEPS),
    "implicit, kernel, learnt": (single(kernel, feedback), 1e-2, STEPS),
    "one layer (R = 0)": (single(sharp, none), 1e-2, STEPS),
    # In STEPS steps six of them learn at most one hop, at any of the rates 1e-3, 3e-3, 1e-2.
    "four layers (R = 0)": (stack(sharp, none, 4), 1e-3, 6 * STEPS),
}
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
print("accuracy by hops         " + " ".join(f"{n:4d}" for n in range(DEEPEST + 1)))
for name, (model, rate, length) in models.items():
    rng, began = np.random.default_rng(1), time.perf_counter()
    batches = (trees(BATCH, rng) for _ in range(length))
    if rate is not None:
        train(model, rate, length, batches)
    seconds = time.perf_counter() - began
    right, steps = tried(model, test)
    print(f"{name:24s} " + " ".join(f"{a:4.2f}" for a in right))
    count = sum(p.size for p in model.params.values())
    print(
        f"    {count} parameters, {seconds:.0f} s, at most {steps} steps a solve; "
        f"contraction {model.certificate().contraction:.2g}"
    )
    assert model.certificate().proven
    axis.plot(right, "o-", label=name)
# What those reach who know the roots' values, but not which of the roots is meant.
guess = (1 + (ROOTS - 1) / VALUES) / ROOTS
axis.axhline(guess, color="grey", linestyle="--", label="guessing among the roots")
axis.axvspan(-0.5, HOPS + 0.5, color="0.9", label="depths seen in training")
axis.set(xlabel="pointers to follow", ylabel="share of right answers", ylim=(0, 1.05))
axis.set_xticks(range(DEEPEST + 1))
axis.set_title("Following chains of pointers: implicit attention, and layers of attention")
axis.legend(loc="lower left", ncols=2)
figure.savefig(OUTPUT / "pointers.png", dpi=100)
