"""A layer of pyidl among modules of torch: ``python examples/torch_layer.py``.

Convolutions of torch read the digits, an implicit model decides, torch's Adam trains both. The gradient of the implicit model is pyidl's,
and torch's own `gradcheck` accepts it. Needs the extra `torch`, and scikit-learn for the data.
"""

import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyidl
from pyidl.interop.torch import Module

EPOCHS = 20
torch.manual_seed(0)
X, t = load_digits(return_X_y=True)
X, V, t, s = train_test_split(X / 16, t, test_size=0.2, random_state=0, stratify=t)
X, V = (torch.tensor(a.reshape(-1, 1, 8, 8), dtype=torch.float32) for a in (X, V))
t, s = torch.tensor(t), torch.tensor(s)

implicit = Module(pyidl.ImplicitModel(256, 10, 60, constraint=pyidl.InfNorm(0.9), rng=0))
convolution = torch.nn.Conv2d(1, 16, 3, padding=1)
network = torch.nn.Sequential(convolution, torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), implicit)
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
began = time.perf_counter()
for _ in range(EPOCHS):
    for rows in torch.randperm(len(X)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(X[rows]), t[rows]).backward()
        optimizer.step()
        implicit.project_()  # back into the set where the fixed point is unique
with torch.no_grad():
    accuracy = (network(V).argmax(dim=1) == s).float().mean().item()
print(f"{EPOCHS} epochs in {time.perf_counter() - began:.1f} s, test accuracy {accuracy:.4f}")
print(implicit.layer.certificate())

exact = Module(pyidl.ImplicitModel(3, 2, 5, activation=pyidl.activations.tanh, dtype="float64", rng=0))
U = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
print("torch.autograd.gradcheck:", torch.autograd.gradcheck(exact, (U,)))
