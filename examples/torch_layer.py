"""An implicit layer in a network of PyTorch.

``python examples/torch_layer.py``; the extras `torch` and `examples`.

A convolution of torch, 60 implicit units of pyidl, a linear layer of torch, trained on
the handwritten digits by torch's Adam. After each step the implicit parameters go to
the nearest ones that are well-posed. Then the layer is taken out, certified, and saved
without torch.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl.interop.torch import Module

OUTPUT = Path(__file__).parent / "output"
OUTPUT.mkdir(exist_ok=True)
torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
data = train_test_split((images / 16).astype("float32"), digits, test_size=0.3, random_state=0)
U, V, y, s = (torch.from_numpy(a) for a in data)

implicit = Module(pyidl.ImplicitModel(8 * 9, 60, 60, activation=pyidl.activations.relu, rng=0))
net = torch.nn.Sequential(
    torch.nn.Unflatten(1, (1, 8, 8)),
    torch.nn.Conv2d(1, 8, 3),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Flatten(),
    implicit,
    torch.nn.Linear(60, 10),
)
print(net)

# Torch's own check of pyidl's gradients, in float64: with respect to the input and every parameter.
twin = Module(
    pyidl.ImplicitModel(4, 3, 6, activation=pyidl.activations.tanh, dtype="float64", rng=0)
)
sample = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
print("gradcheck:", torch.autograd.gradcheck(twin, (sample,)))

adam = torch.optim.Adam(net.parameters(), lr=3e-3)
for epoch in range(15):
    for batch in torch.randperm(len(U)).split(64):
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(U[batch]), y[batch])
        loss.backward()
        adam.step()
        implicit.project_()
    if epoch % 5 == 4:
        with torch.no_grad():
            print(
                f"epoch {epoch + 1:2d}: loss {loss:.3f}, "
                f"test accuracy {(net(V).argmax(1) == s).float().mean():.3f}"
            )

layer = implicit.layer  # a pyidl layer again
print(layer.certificate())
file = OUTPUT / "implicit_part.npz"
pyidl.save(file, layer)
features = net[:5](V).detach().cpu().numpy()
with_torch = implicit(net[:5](V)).detach().cpu().numpy()
print("the same without torch:", np.abs(pyidl.load(file).predict(features) - with_torch).max())
