"""A trained network becomes an implicit model, by convex optimisation.

``python examples/sim_fashion_mnist.py [folder]``

A network 784-64-32-16-10 is trained on Fashion-MNIST (the folder holds the four idx
files; Debian's package is looked for; without either, the digits of scikit-learn). Its
states on 2,000 images are all that the implicit models see. Printed: what each of them
keeps of the accuracy, how many weights it needs, how near to the optimum it is; and how
the network and its models fare under attack.
"""

import functools
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from fashion_mnist import DEBIAN, read_idx

import pyidl
from pyidl import activations, losses, metrics, optim, sim, wellposed
from pyidl.arrays.backend import namespace

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
SAMPLES, ATTACKED = 2000, 1000


def data():
    """``(name, U_train, t_train, U_test, t_test)``, pixels between 0 and 1."""
    if not FOLDER.is_dir():
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        U, t = load_digits(return_X_y=True)
        U, V, t, s = train_test_split(
            (U / 16).astype(np.float32), t, test_size=0.2, random_state=0, stratify=t
        )
        return "digits", U, t, V, s
    U, V = (
        read_idx(FOLDER, f"{kind}-images-idx3-ubyte").reshape(-1, 784).astype(np.float32) / 255
        for kind in ("train", "t10k")
    )
    t, s = (
        read_idx(FOLDER, f"{kind}-labels-idx1-ubyte").astype(np.int64) for kind in ("train", "t10k")
    )
    return "Fashion-MNIST", U, t, V, s


def attacked(model, U, t, epsilon, steps):
    """Images moved by an attack: no pixel differs by more than epsilon.

    Along the sign of the loss's gradient: FGSM, or PGD for more steps.
    """
    V, xp = U, namespace(U)  # NumPy, or CuPy on a GPU
    for _ in range(steps):
        Y, pull = model(V)
        dU, _ = pull(losses.cross_entropy(Y, t)[1])
        V = V + (epsilon if steps == 1 else 2.5 * epsilon / steps) * xp.sign(dU)
        V = xp.clip(xp.clip(V, U - epsilon, U + epsilon), 0, 1)
    return V


name, U, t, V, s = data()
print(f"{name}: {len(U)} training images, {len(V)} test images")
images = U[np.random.default_rng(0).permutation(len(U))[:SAMPLES]]
widths, layers = (U.shape[1], 64, 32, 16, 10), []
for i in range(4):
    layers += [pyidl.Linear(widths[i], widths[i + 1], bias=False, rng=i), activations.relu]
network = pyidl.Sequential(*layers[:-1])
epochs = 10 if len(U) > 10_000 else 60
pyidl.fit(
    network,
    (U, t),
    loss=losses.cross_entropy,
    optimizer=optim.Adam(1e-3),
    epochs=epochs,
    rng=0,
    verbose=0,
)
accuracy = metrics.accuracy(network.predict(V), s)
print(f"network {'-'.join(map(str, widths))}: test accuracy {accuracy:.4f}")

states = sim.collect_states(network, images)
m = len(states.U)


def show(title, result, seconds):
    """One line for a model."""
    report, found = result.report, result.model.equilibrium(V[:ATTACKED])
    share = {key: some / size for key, (some, size) in report.nonzeros.items()}
    print(
        f"{title:34} accuracy {metrics.accuracy(result.model.predict(V), s):.4f}   "
        f"nonzero A {share['A']:5.1%} B {share['B']:5.1%} "
        f"all {report.density:5.1%}   gap {report.states.relative_gap:.0e}   "
        f"{found.n_iter.mean():.0f} steps a solve   {seconds:.1f} s"
    )


# Without feedback no bound is needed, and inference is one pass; a weight between units
# counts more than one from the input.
chain = {"constraint": wellposed.StrictlyTriangular(), "pattern": "block_triangular"}
recipes = {
    "any feedback, row sums 0.99": functools.partial(sim.fit, penalty=sim.L1(10 / m)),
    "no self-loops, row sums 0.99": functools.partial(
        sim.fit, penalty=sim.L1(10 / m), pattern="no_self_loops"
    ),
    "the network's order": functools.partial(
        sim.fit, penalty=sim.L1(3 / m), state_cost=10, relaxed=sim.L1(0.3 / m), **chain
    ),
    "the network's order, sparser": functools.partial(
        sim.fit, penalty=sim.L1(30 / m), relaxed=sim.L1(0.3 / m), refit_rounds=2, **chain
    ),
}
models = {}
for title, recipe in recipes.items():
    began = time.perf_counter()
    models[title] = recipe(states)
    show(title, models[title], time.perf_counter() - began)
print(models["any feedback, row sums 0.99"].report)

lams = (np.geomspace(300, 1, 9) / m).tolist()
along = functools.partial(sim.fit, relaxed=sim.L1(0.1 / m), **chain)
path = sim.path(
    states,
    [sim.L1(round(lam, 5)) for lam in lams],
    lambda model: metrics.accuracy(model.predict(V), s),
    fit=along,
)
print(f"a path of penalties, in the network's order:\n{path}")

print(f"attacks on {ATTACKED} test images (accuracy; each model is attacked by its own gradient)")
under = {"network": network, **{title: result.model for title, result in models.items()}}
under["row sums 0.5, a strong penalty"] = sim.fit(
    states, penalty=sim.L1(100 / m), constraint=pyidl.InfNorm(0.5)
).model
print(
    f"{'':34}   clean"
    + "".join(f"   {kind} {e:4.2f}" for e in (0.02, 0.05, 0.1) for kind in ("FGSM", "PGD"))
)
some, labels = V[:ATTACKED], s[:ATTACKED]
for title, model in under.items():
    row = [metrics.accuracy(model.predict(some), labels)]
    for epsilon in (0.02, 0.05, 0.1):
        row += [
            metrics.accuracy(model.predict(attacked(model, some, labels, epsilon, steps)), labels)
            for steps in (1, 20)
        ]
    print(
        f"{title:34}   {row[0]:.3f}"
        + "".join(
            f"{value:12.3f}" if i % 2 == 0 else f"{value:11.3f}" for i, value in enumerate(row[1:])
        )
    )

figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
for axis, title in zip(
    axes, ("any feedback, row sums 0.99", "the network's order, sparser"), strict=False
):
    A = pyidl.to_numpy(models[title].model.params["A"])
    image = axis.imshow(A, cmap="RdBu", vmin=-1, vmax=1, interpolation="none")
    axis.set(
        title=f"A: {title} ({np.mean(A != 0):.0%} nonzero)", xlabel="from unit", ylabel="to unit"
    )
    for edge in np.cumsum(states.widths)[:-1] - 0.5:
        axis.axhline(edge, color="0.6", linewidth=0.5)
        axis.axvline(edge, color="0.6", linewidth=0.5)
figure.colorbar(image, ax=axes[:2], label="weight", extend="both")
path.plot(axes[2], reference=accuracy).set(
    title="fewer weights, in the network's order", ylabel="test accuracy"
)
figure.suptitle(
    f"{name}: implicit models from the states of a network {'-'.join(map(str, widths))}; "
    "grey lines part its layers, the last one first"
)
figure.savefig(OUTPUT / "sim_fashion_mnist.png", dpi=100)
