r"""Optimisers: ``step(params, grads) -> params``, new arrays every time, the old ones untouched.

An optimiser is the one stateful object of the library: a configuration, fixed when it is built, a flat dictionary `state`
of arrays, and the number of steps `count`. Both can be read, saved and set, and a run then continues to the last bit.

    SGD     v <- mu v + g;   theta <- theta - lr v                                    (Nesterov: g + mu v in place of v)
    Adam    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
            theta <- theta - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)
    AdamW   theta <- (1 - lr decay) theta  first, then Adam

Sources: Sutskever, Martens, Dahl, Hinton, ICML 2013; Kingma, Ba, ICLR 2015; Loshchilov, Hutter, ICLR 2019.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyidl.backend import astype, is_array, namespace, to_numpy
from pyidl.errors import InputError
from pyidl.schedules import Constant, Cosine, Exponential, Piecewise, Schedule, check_positive
from pyidl.typing import Array, Params

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Cosine", "Exponential", "Optimizer", "Piecewise", "Schedule"]


class Optimizer(ABC):
    """What all optimisers share: the step count, the state, clipping, and the door."""

    slots: tuple[str, ...]
    """Names of the arrays that are kept for each parameter, with its shape; "k", its own step count, is a number on the host."""

    def __init__(self, learning_rate: float | Schedule, clip_norm: float | None) -> None:
        if not callable(learning_rate):
            check_positive("learning_rate", learning_rate)
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self._state: dict[str, Any] = {}
        self._count = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and name[0] != "_":
            raise AttributeError(f"{name} is fixed when an optimiser is built; build another one, and hand it `state` and `count`")
        super().__setattr__(name, value)

    @property
    def state(self) -> dict[str, Any]:
        """A copy of the flat dictionary: ``{"m.A": array, ...}``, empty before the first step."""
        return dict(self._state)

    @state.setter
    def state(self, new: Mapping[str, Any]) -> None:
        for key, a in new.items():
            slot, _, name = key.partition(".")
            if slot not in self.slots or not name:
                kept = f"keeps {', '.join(self.slots)} of every parameter" if self.slots else "keeps no state"
                raise InputError(f"{key!r} is no state of {type(self).__name__}, which {kept}; set what `state` gave")
            if not is_array(a) or (slot == "k" and (a.shape != () or not 1 <= a == int(a))):
                raise InputError(f"the state {key!r} is {a!r}; an array is needed, and for k a number of steps, from 1 on")
            missing = [f"{other}.{name}" for other in self.slots if f"{other}.{name}" not in new]
            if missing:
                raise InputError(f"{', '.join(missing)} is missing from the state; a run goes on only with all of it")
        self._state = {key: to_numpy(a) if key.startswith("k.") else a for key, a in new.items()}

    @property
    def count(self) -> int:
        """Steps taken."""
        return self._count

    @count.setter
    def count(self, new: int) -> None:
        if isinstance(new, bool) or not isinstance(new, int) or new < 0:
            raise InputError(f"count is {new!r}; it is a number of steps")
        self._count = new

    @property
    def current_rate(self) -> float:
        """The learning rate of the next step."""
        rate = float(self.learning_rate(self._count) if callable(self.learning_rate) else self.learning_rate)
        if not 0 <= rate < math.inf:
            raise InputError(f"the schedule gives {rate} at step {self._count}; a learning rate is finite and not negative")
        return rate

    def step(self, params: Params, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Return new parameters; those without a gradient stay the very same arrays.

        Parameters
        ----------
        params : mapping of str to array
            Left as they are.
        grads : mapping of str to array
            For some or all of the parameters.

        Raises
        ------
        InputError
            If a gradient belongs to no parameter, or its shape or dtype, or those of the state, are not the parameter's.
            Nothing is changed then.
        DeviceMismatchError
            If parameter, gradient and state live on different devices. Nothing is changed then.
        """
        unknown = sorted(set(grads) - set(params))
        if unknown:
            raise InputError(f"there are gradients of {', '.join(unknown)}, but the parameters are {', '.join(params)}; leave them out")
        for key, g in grads.items():
            p = params[key]
            kept = [self._state[name] for slot in self.slots if slot != "k" and (name := f"{slot}.{key}") in self._state]
            namespace(p, g, *kept)
            for a in (g, *kept):
                if a.shape != p.shape or a.dtype != p.dtype:
                    what = f"{'gradient' if a is g else 'state'} {a.dtype} of shape {a.shape}; for a changed model use a new optimiser"
                    raise InputError(f"parameter {key} is {p.dtype} of shape {p.shape}, its {what}")
        lr, state, new = self.current_rate, dict(self._state), dict(params)
        scale = None if self.clip_norm is None or not grads else _clip_factor(grads, self.clip_norm)
        for key, g in grads.items():
            xp = namespace(g)
            own = [state.get(f"{slot}.{key}") for slot in self.slots]
            p, after = self._update(params[key], g if scale is None else g * astype(xp, scale, g.dtype), own, lr)
            new[key] = xp.asarray(p)  # NumPy turns arrays without dimensions into scalars
            state |= {f"{slot}.{key}": a if slot == "k" else xp.asarray(a) for slot, a in zip(self.slots, after, strict=True)}
        self._state, self._count = state, self._count + 1
        return new

    @abstractmethod
    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        """The new parameter, and what is kept; `own` holds None before the first step. No array is written into."""

    def __repr__(self) -> str:
        given = {key: value for key, value in vars(self).items() if key[0] != "_" and value not in (None, 0.0, False, ())}
        options = [repr(given.pop("learning_rate")), *(f"{key}={value!r}" for key, value in given.items())]
        return f"{type(self).__name__}({', '.join(options)}), {self._count} steps"


class SGD(Optimizer):
    """``v <- mu v + g, theta <- theta - lr v``, with ``g + mu v`` in place of v for Nesterov; decay adds ``decay * theta`` to g.

    Parameters
    ----------
    learning_rate : float or Schedule
        lr.
    momentum : float
        mu in [0, 1).
    nesterov : bool
        Needs momentum.
    weight_decay : float
        decay.
    clip_norm : float, optional
        Gradients are scaled down together so that their common Euclidean norm is at most this.

    Examples
    --------
    >>> SGD(0.5).step({"w": np.array([1.0])}, {"w": np.array([1.0])})["w"]
    array([0.5])
    """

    slots: tuple[str, ...] = ("velocity",)

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm)
        if not (0 <= momentum < 1 and 0 <= weight_decay < math.inf) or (nesterov and momentum == 0):
            raise InputError(
                f"momentum = {momentum}, nesterov = {nesterov}, weight_decay = {weight_decay}: momentum lies in [0, 1) and is needed by "
                "nesterov, weight_decay is finite and not negative"
            )
        self.momentum, self.nesterov, self.weight_decay = float(momentum), nesterov, float(weight_decay)
        if momentum == 0:
            self.slots = ()

    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        if self.weight_decay:
            g = g + self.weight_decay * p
        if not self.momentum:
            return p - lr * g, ()
        if own[0] is None:
            v = 1.0 * g  # a copy: the caller may write into its gradient
        else:
            v = self.momentum * own[0]
            v += g
        return p - lr * (g + self.momentum * v if self.nesterov else v), (v,)


class Adam(Optimizer):
    """``theta <- theta - lr m^ / (sqrt(v^) + eps)``, with running means m, v of g and g^2, corrected for their start at 0.

    Parameters
    ----------
    learning_rate : float or Schedule
        lr.
    betas : (float, float)
        Shares of the past in m and v.
    eps : float
        Bounds the step where gradients vanish.
    clip_norm : float, optional
        As for `SGD`.

    Examples
    --------
    >>> Adam(0.1).step({"w": np.array([1.0])}, {"w": np.array([3.0])})["w"].round(6)
    array([0.9])
    """

    slots = ("m", "v", "k")
    weight_decay = 0.0

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm)
        if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas) and 0 < eps < math.inf):
            raise InputError(f"betas = {betas}, eps = {eps}: two shares in [0, 1) and a positive eps are needed")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)

    def _update(self, p: Any, g: Any, own: list[Any], lr: float) -> tuple[Any, tuple[Any, ...]]:
        b1, b2 = self.betas
        m, v, k = (1.0 - b1) * g, (1.0 - b2) * (g * g), 1
        if own[2] is not None:
            m += b1 * own[0]
            v += b2 * own[1]
            k += int(own[2])
        root = namespace(g).sqrt(v)
        root *= 1.0 / math.sqrt(1.0 - b2**k)
        root += self.eps
        move = m / root
        move *= lr / (1.0 - b1**k)
        if self.weight_decay:
            p = (1.0 - lr * self.weight_decay) * p
        return p - move, (m, v, np.asarray(k))


class AdamW(Adam):
    """Adam with decoupled decay: theta shrinks by ``lr * weight_decay`` of itself in every step, whatever its gradient.

    Parameters
    ----------
    learning_rate, betas, eps, clip_norm
        As for `Adam`.
    weight_decay : float
        All parameters decay that have a gradient, biases too.

    Examples
    --------
    >>> AdamW(0.1, weight_decay=0.5).step({"w": np.array([1.0])}, {"w": np.array([0.0])})["w"]
    array([0.95])
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(learning_rate, betas=betas, eps=eps, clip_norm=clip_norm)
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"weight_decay is {weight_decay}; it must be finite and not negative")
        self.weight_decay = float(weight_decay)


def _clip_factor(grads: Mapping[str, Array], clip_norm: float) -> Any:
    """``min(1, clip / norm)`` of all gradients together, as an array without dimensions; 1 where the norm is 0."""
    xp = namespace(*grads.values())
    square = sum(xp.sum(astype(xp, g, "float64") ** 2) for g in grads.values())
    return clip_norm / xp.maximum(xp.sqrt(square), clip_norm)
