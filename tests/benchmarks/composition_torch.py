"""Converted networks of torch beside torch: ``python tests/benchmarks/composition_torch.py``.

Three small convolutional networks are trained on the digits of scikit-learn for three
epochs and become implicit models; both predict the same images on one thread (say
OPENBLAS_NUM_THREADS=1). One is the network of `examples/compose.py`, with maxima; one
has strides in their place; one is a residual network.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from timing import alternate, report
from torch import nn

from pyidl.interop.torch import to_implicit

torch.set_num_threads(1)
BATCHES = (1, 16, 64, 256, 1024)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, v):
        v = torch.relu(self.stem(v))
        v = torch.relu(v + self.norm(self.two(torch.relu(self.one(v)))))
        return self.head(v.mean((2, 3)))


def networks():
    def conv(c, out, stride=1):
        return nn.Conv2d(c, out, 3, stride, padding=1)

    def end(width):
        return [nn.Flatten(), nn.Linear(width, 10)]

    pooled = [conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    pooled += [conv(8, 16), nn.ReLU(), nn.MaxPool2d(2)]
    strided = [conv(1, 8, 2), nn.ReLU(), conv(8, 16, 2), nn.ReLU()]
    yield "maxima", nn.Sequential(*pooled, *end(64))
    yield "strides", nn.Sequential(*strided, *end(64))
    yield "residual", Residual()


def train(net, U, t, epochs=3):
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(U)).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(net(U[batch]), t[batch]).backward()
            adam.step()
    return net.eval()


def main(rounds=15):
    torch.manual_seed(0)
    images, t = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    for title, net in networks():
        train(net, torch.tensor(images).reshape(-1, 1, 8, 8), torch.tensor(t))
        model = to_implicit(net, (1, 8, 8))
        print(f"\n{title}: {model.hidden_dim} states, {model.pattern.A.mean():.1%} of A")
        for m in BATCHES:
            U = np.ascontiguousarray(images[:m])
            V = torch.tensor(U).reshape(-1, 1, 8, 8)

            def of_torch(net=net, V=V):
                with torch.no_grad():
                    return net(V)

            runs = {"torch": of_torch, "model": lambda U=U, model=model: model.predict(U)}
            report(f"{m} samples", alternate(runs, rounds, calls=max(5, 200 // m)), "torch")


if __name__ == "__main__":
    main()
