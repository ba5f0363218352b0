r"""A feed-forward network is an implicit model.

The exact one, from which states can be learned more sparsely: `compose.to_implicit`
with nothing kept, so that its states are those of the network's activations.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 3.
"""

from __future__ import annotations

from typing import Any

from pyidl.compose import to_implicit
from pyidl.layers import ImplicitModel, Sequential
from pyidl.sim.networks import chain, read_chain
from pyidl.sim.torch_network import is_torch, layers_of

__all__ = ["exact_model"]


def exact_model(network: Any) -> ImplicitModel:
    """The network itself as an implicit model, with the pattern of its layers.

    Its states are those of `collect_states`, its outputs those of the network, before
    an activation of the output.

    Parameters
    ----------
    network : Sequential, Feedforward, a perceptron, or torch.nn.Sequential
        As for `collect_states`, of linear layers, activations and implicit models.

    Returns
    -------
    ImplicitModel

    Raises
    ------
    InputError
        If the network is none of these.

    Notes
    -----
    Source: El Ghaoui et al. 2021, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import Linear, Sequential, activations
    >>> from pyidl.matrices.pattern import Pattern
    >>> relu = activations.relu
    >>> layers = [Linear(4, 3, rng=0), Linear(3, 2, rng=1), Linear(2, 1, rng=2)]
    >>> net = Sequential(layers[0], relu, layers[1], relu, layers[2])
    >>> model = exact_model(net)
    >>> model.pattern == Pattern.feed_forward(4, 3, 2, 1)
    True
    >>> U = np.ones((5, 4), np.float32)
    >>> bool(np.allclose(model.predict(U), net.predict(U)))
    True
    """
    known = chain(layers_of(network)) if is_torch(network) else read_chain(network)
    return to_implicit(Sequential(*known.layers), keep=False)
