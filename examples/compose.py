"""A network of torch as one implicit model, and in a loop: ``python examples/compose.py [epochs]``.

A small convolutional network learns the digits of scikit-learn. It becomes the model x =
relu(A x + B u + b), y = C x + d, whose A has a block for every layer. Then two models hear
each other, and a gain is proved for the loop, as long as it is weak enough.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pyidl
from pyidl import compose
from pyidl.errors import InputError
from pyidl.interop.torch import to_implicit

OUTPUT = Path(__file__).parent / "output"
BLOCKS = (
    ("convolution 1", 512),
    ("pairs", 256),  # max(a, b) = b + relu(a - b), twice for four pixels
    ("pairs of pairs", 128),
    ("maximum", 128),
    *(("convolution 2", 256), ("pairs", 128), ("pairs of pairs", 64), ("maximum", 64)),
)
"""Of A, in the order of solving."""


def trained(U, t, epochs):
    """The network, in evaluation mode."""
    torch.manual_seed(0)
    conv, pool = [nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)], nn.MaxPool2d(2)
    first = [conv[0], nn.BatchNorm2d(8), nn.ReLU(), pool]
    second = [conv[1], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)]
    net = nn.Sequential(*first, *second, nn.Linear(64, 10))
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(U)).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(net(U[batch]), t[batch]).backward()
            adam.step()
    return net.eval()


def draw(model):
    """Where A may be nonzero; what is solved last stands on top."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.subplots()
    axes.spy(model.pattern.A, markersize=0.6, color="tab:blue", rasterized=True)
    names, sizes = zip(*BLOCKS, strict=True)
    ends = model.hidden_dim - np.cumsum([0, *sizes])
    axes.set_xticks(ends[1:-1] - 0.5, minor=True)
    axes.set_yticks(ends[1:-1] - 0.5, minor=True)
    axes.grid(which="minor", color="0.8")
    middle = (ends[1:] + ends[:-1]) / 2
    axes.set_yticks(middle, names)
    axes.set_xticks(middle, names, rotation=90)
    axes.tick_params(which="both", length=0)
    axes.set_title("Where A may be nonzero: who reads whom", pad=12)
    axes.set(xlabel="what is read", ylabel="what reads it")
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / "compose.png", dpi=120)


def main():
    """Train, convert, look; then close a loop around it."""
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    U, t = load_digits(return_X_y=True)
    U, V, t, s = train_test_split(U.astype(np.float32) / 16, t, random_state=0)
    images = torch.tensor(U).reshape(-1, 1, 8, 8)
    net = trained(images, torch.tensor(t), epochs)

    model = to_implicit(net, (1, 8, 8))
    scores = model.predict(V)
    with torch.no_grad():
        of_torch = net(torch.tensor(V).reshape(-1, 1, 8, 8)).numpy()
    print(f"test accuracy: {np.mean(scores.argmax(1) == s):.3f}")
    print(f"apart from torch: {np.abs(scores - of_torch).max() / np.abs(of_torch).max():.1e}")
    print(f"{model.hidden_dim} states, {model.pattern.A.mean():.1%} of A may be nonzero")
    print(model.equilibrium(V).method)
    print("certificate:", model.certificate().reason)
    assert model.maps["A"].row_groups.sizes == tuple(size for _, size in BLOCKS)
    draw(model)
    in_a_loop()


def in_a_loop():
    """Two models that hear each other: how loud may they be?"""
    options = {"activation": "tanh", "constraint": pyidl.InfNorm(0.5), "dtype": "float64"}
    parts = tuple(pyidl.ImplicitModel(2, 2, 20, rng=i, **options) for i in (0, 1))
    swap, E, F = np.kron([[0, 1], [1, 0]], np.eye(2)), np.eye(4, 2), np.eye(2, 4)
    U = np.random.default_rng(0).normal(size=(1000, 2))
    V = U + np.random.default_rng(1).normal(scale=0.1, size=U.shape)
    for strength in (0.02, 0.05, 0.1):
        loop = compose.Interconnection(parts, loop=strength * swap, inputs=E, outputs=F)
        whole = loop.model()
        moved = np.abs(whole.predict(V) - whole.predict(U))
        try:
            allowed = np.abs(V - U) @ loop.gain().T
            share = (moved / allowed).max()
            print(f"loop {strength}: gain proved; moved at most {share:.0%} of what it allows")
        except InputError as error:
            print(f"loop {strength}: {error}")
            print("    the model itself is", str(whole.certificate()).split(":")[0])


if __name__ == "__main__":
    main()
