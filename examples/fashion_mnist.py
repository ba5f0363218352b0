"""Fashion-MNIST, 60,000 images: ``python examples/fashion_mnist.py [folder]``.

The folder holds the usual four idx files, plain or gzipped. Without an argument
Debian's package is used.
"""

import gzip
import sys
import time
from pathlib import Path

import numpy as np

import pyidl
from pyidl import losses, metrics, optim, testing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EPOCHS = 10


def read_idx(folder, name):
    """The entries of an idx file.

    Two zero bytes, a code for the entries (8 is unsigned bytes), the number of axes,
    their lengths, the entries.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            axes = (
                data[3]
                if data[:3] == b"\0\0\x08"
                else sys.exit(f"{path} is not an idx file of bytes")
            )
            shape = np.frombuffer(data, ">u4", axes, offset=4)
            return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    sys.exit(
        f"{folder / name}[.gz] is not there. Install the images with\n"
        "    apt-get install dataset-fashion-mnist\n"
        "or give the folder of the four idx files: python examples/fashion_mnist.py FOLDER"
    )


def main():
    """Train, certify, check, report."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
    U_train, U_test = (
        read_idx(folder, f"{kind}-images-idx3-ubyte").reshape(-1, 784).astype(np.float32) / 255
        for kind in ("train", "t10k")
    )
    t_train, t_test = (
        read_idx(folder, f"{kind}-labels-idx1-ubyte").astype(np.int64) for kind in ("train", "t10k")
    )
    print(f"{len(U_train)} training images, {len(U_test)} test images")

    model = pyidl.ImplicitModel(784, 10, 100, constraint=pyidl.InfNorm(0.9), rng=0)
    began = time.perf_counter()
    history = pyidl.fit(
        model,
        U_train,
        t_train,
        loss="cross_entropy",
        optimizer=optim.AdamW(
            optim.Cosine(2e-3, steps=EPOCHS * -(-len(U_train) // 128)), weight_decay=0.05
        ),
        epochs=EPOCHS,
        batch_size=128,
        validation=(U_test, t_test),
        metrics=["accuracy"],
        rng=0,
    )
    print(history)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    print(model.certificate())
    print(
        "worst gradient error against central differences (float64): "
        f"{testing.check_pullback(model, U_test[:16]).max_error:.1e}"
    )
    print(f"test accuracy: {metrics.accuracy(model.predict(U_test, batch_size=1000), t_test):.4f}")
    Y, pull = model(U_test[:1000])
    adjoint = pull.solve(losses.cross_entropy(Y, t_test[:1000])[1])
    print(
        f"steps per solve: forward {pull.forward.n_iter.mean():.1f}, "
        f"adjoint {adjoint.n_iter.mean():.1f}"
    )
    path = Path(__file__).parent / "output" / "fashion_mnist.npz"
    path.parent.mkdir(exist_ok=True)
    pyidl.save(path, model)
    again = pyidl.load(path, device=pyidl.arrays.device_of(Y))
    assert np.array_equal(
        pyidl.to_numpy(again.predict(U_test)), pyidl.to_numpy(model.predict(U_test))
    )
    print("saved, reloaded: equal predictions")


if __name__ == "__main__":
    main()
