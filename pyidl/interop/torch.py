"""A layer of pyidl as a module of torch.

``dU, dtheta = pullback(dY)`` in the place of torch's tape.

    torch:    Y = Module(layer)(U);    Y.backward(dY)
    pyidl:    Y, pull = layer(U);      dU, grads = pull(dY)

Torch asks a node of its graph for ``J^T dY``, which is what a pullback is. So the node
holds the pullback and nothing else: no operation of the solve is recorded, and the
gradients are the exact ones of the implicit function theorem. A pullback is no graph
that could be differentiated again; whoever differentiates twice is told so.

Tensors and arrays share their memory, in both directions: on the CPU through the buffer
itself, on a GPU through DLPack and CuPy. The input and the parameters are copied, once
a call: a pullback stays that of its forward call, whatever is edited in place. A call
computes with a layer of its own, so that threads share nothing.

What rewrites a program instead of running it cannot see through a node. `torch.compile`
runs it between two graphs; the others (`torch.vmap`, `torch.export`, ...) are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyidl.arrays.backend import DTYPES
from pyidl.errors import DeviceError, InputError
from pyidl.interop.torch_compose import converted
from pyidl.interop.torchidl import from_torchidl, to_torchidl
from pyidl.layers import ImplicitModel, Layer, Pullback
from pyidl.solvers.solution import OnFail
from pyidl.typing import Array

__all__ = ["Module", "from_torchidl", "to_array", "to_implicit", "to_tensor", "to_torchidl"]


OUTSIDE = (
    "what transforms a program (torch.vmap, torch.func.jacrev, forward mode, batched gradients, "
    "torch.export, torch.fx, torch.jit) cannot look into a layer of pyidl: give samples as rows "
    "of one call and cotangents one by one (vectorize=False, chunk_size=1); for a file, use "
    "pyidl.interop.onnx.export(module.layer)"
)


def to_array(tensor: torch.Tensor) -> Any:
    """The memory of a tensor as an array: NumPy on the CPU, CuPy on a GPU.

    Without a copy, unless torch has put off a conjugation or a change of sign.

    Raises
    ------
    InputError
        If the tensor has no memory that an array could share: it is sparse, or stands
        for others, as inside `torch.vmap`.
    DeviceError
        If the tensor is on a GPU and CuPy is not installed, or on a device that neither
        library knows.

    Examples
    --------
    >>> t = torch.zeros(2)
    >>> to_array(t)[0] = 5.0
    >>> t
    tensor([5., 0.])
    """
    try:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        if tensor.device.type == "cpu":
            return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"a tensor has no array ({error}); {OUTSIDE}") from error
    if tensor.device.type != "cuda":
        raise DeviceError(
            f"a tensor is on {tensor.device}; pyidl computes on 'cpu' and on 'cuda': move it, "
            "tensor.to('cpu')"
        )
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"a tensor is on {tensor.device}, where pyidl needs CuPy, which is not installed; "
            "install the extra cuda12 or cuda13 of implicit-pyidl, or move the module: "
            "module.to('cpu')"
        ) from error
    with cupy.cuda.Device(tensor.device.index):
        return cupy.from_dlpack(tensor)


def to_tensor(array: Array) -> torch.Tensor:
    """The memory of an array as a tensor; copied only where torch cannot have it.

    Read-only, or with a negative stride.

    Examples
    --------
    >>> to_tensor(np.arange(3.0)[::-1])
    tensor([2., 1., 0.], dtype=torch.float64)
    """
    if isinstance(array, np.ndarray):
        shareable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        return torch.from_numpy(array if shareable else array.copy())
    return torch.from_dlpack(array)


class _Node(torch.autograd.Function):
    """A node that is computed as it stands, or not at all."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        """Refuse.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(OUTSIDE)

    jvp = vmap


class _Apply(_Node):
    """The node of torch's graph.

    Y and the pullback, of what the layer is called with and of its parameters.
    """

    @staticmethod
    def forward(
        module: Module,
        rng: np.random.Generator | None,
        given: tuple[bool, ...],
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, Pullback]:
        """Call the layer.

        `given` says which arguments of its call are among the tensors, before the
        parameters.
        """
        arrays = iter([to_array(t) for t in tensors])
        arguments = [next(arrays) if here else None for here in given]
        result, pull = module._with(list(arrays))(*arguments, rng=rng, on_fail=module.on_fail)
        Y = to_tensor(result)
        # A layer may hand on what it is given; Y still has a memory of its own.
        return Y.clone() if any(Y.data_ptr() == t.data_ptr() for t in tensors) else Y, pull

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, Pullback]
    ) -> None:
        """Keep the pullback, and the tensors.

        Torch checks that none of them is edited before the backward pass.

        Y is among them: what a pullback keeps may lie in the same memory.
        """
        module, _, given, *tensors = inputs
        ctx.pull, ctx.count, ctx.names = output[1], sum(given), module._names
        ctx.save_for_backward(output[0], *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dY: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
        """``(dU, grads) = pull(dY)``, in the order of the inputs.

        What nobody asked for is None, and dU is not formed then.
        """
        (_, *tensors), wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if dY is None:
            return (None,) * len(ctx.needs_input_grad)
        # A node only where someone asks for a graph of the gradients.
        pull = _Pull.apply if torch.is_grad_enabled() else _Pull.forward
        return None, None, None, *pull(ctx.pull, ctx.count, ctx.names, wanted, dY, *tensors)


class _Pull(_Node):
    """The pullback as a node of its own, which has no derivative.

    For whoever asks for a graph of the gradients.
    """

    @staticmethod
    def forward(
        pull: Pullback,
        count: int,
        names: tuple[str, ...],
        wanted: tuple[bool, ...],
        dY: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the `count` inputs, then those of the parameters."""
        dU, grads = pull(to_array(dY), inputs=any(wanted[:count]))
        found = [
            *(dU if isinstance(dU, tuple) else (dU,) * count),
            *(grads[name] for name in names),
        ]
        return tuple(
            to_tensor(g) if want and g is not None else None
            for g, want in zip(found, wanted, strict=True)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """Refuse.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            "a gradient of pyidl was differentiated, but a pullback has derivatives of first "
            "order only; leave out create_graph=True, or detach the gradient before it enters a "
            "loss"
        )


class _Lazy(np.random.Generator):
    """Numbers whose seed comes from torch's generator when the first of them is drawn.

    So a layer that draws nothing leaves that generator as it is.
    """

    def __init__(self, source: torch.Generator | None) -> None:
        super().__init__(np.random.PCG64(0))
        self.sources = [source]

    def __getattribute__(self, name: str) -> Any:
        if name in vars(np.random.Generator) and self.sources:
            source = self.sources.pop()
            where = "cpu" if source is None else source.device
            seed = torch.randint(2**63 - 1, (), generator=source, device=where)
            self.bit_generator.state = np.random.PCG64(int(seed)).state
        return super().__getattribute__(name)


class Module(torch.nn.Module):
    """A layer of pyidl as a `torch.nn.Module`.

    Exact gradients, torch's optimisers, torch's other modules before and behind it.

    The parameters are torch's, under the names that they have in pyidl ("A", and "0.W"
    in a `Sequential`), also in `state_dict`. They start with the layer's values; the
    layer itself is not touched. dtype and device are those of the parameters, so that
    `double()` and `to("cuda")` do what they do elsewhere; inputs are cast to that
    dtype.

    Parameters
    ----------
    layer : Layer
        On the CPU or on a GPU.
    on_fail : {"raise", "warn", "ignore"}
        What happens to samples whose solve, forward or adjoint, does not converge; an
        attribute that may be changed.

    Raises
    ------
    InputError
        If `layer` is no layer; in a call, as the layer does, and if the parameters are
        neither float32 nor float64.

    Notes
    -----
    `torch.compile` runs a module between two graphs. What transforms a program, such
    as `torch.vmap` and `torch.export`, is refused; docs/interop.md has the list. Calls
    in several threads do not disturb each other.

    An optimiser may leave the set in which the fixed point is certain: call `project_`
    after its step.

    The output must not be edited in place before the backward pass, as that of
    `torch.tanh`; torch says so.

    Examples
    --------
    >>> from pyidl import ImplicitModel
    >>> module = Module(ImplicitModel(3, 2, 10, rng=0))
    >>> adam = torch.optim.Adam(module.parameters())
    >>> module(torch.ones(5, 3)).square().sum().backward()
    >>> adam.step()
    >>> module.project_()
    >>> module.layer.certificate().proven, sorted(module.state_dict())
    (True, ['A', 'B', 'C', 'D', 'b', 'd'])
    """

    def __init__(self, layer: Layer, *, on_fail: OnFail = "raise") -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            raise InputError(f"Module takes a Layer of pyidl, got {type(layer).__name__}")
        self.on_fail = on_fail
        self._layer = layer.replace()  # its configuration; its parameters are never read
        self._names = tuple(layer.params)
        for name, array in layer.params.items():
            *path, leaf = name.split(".")
            owner: torch.nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, torch.nn.Parameter(to_tensor(array).clone()))

    def _tensors(self) -> list[torch.Tensor]:
        """The parameters, in the order of the layer's.

        Whatever stands under their names at the moment.
        """
        tensors = [functools.reduce(getattr, name.split("."), self) for name in self._names]
        dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
        if len(dtypes) > 1 or not set(dtypes) <= set(DTYPES):
            raise InputError(
                f"the parameters are {' and '.join(dtypes)}; pyidl computes in one dtype, float32 "
                "or float64: module.float() or .double()"
            )
        return tensors

    def _with(self, arrays: Sequence[Any]) -> Layer:
        """A new layer with these parameters: another thread may be calling, too."""
        layer = self._layer
        if arrays and layer.dtype != str(arrays[0].dtype):
            layer = layer.astype(str(arrays[0].dtype))
        return layer._holding(dict(zip(self._names, arrays, strict=True)))

    @property
    def layer(self) -> Layer:
        """The layer with the present parameters.

        To save it, for its certificate, for `fit`. A copy; what is done to it stays
        there.
        """
        return self._with([to_array(t) for t in self._tensors()])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self, U: torch.Tensor, *more: torch.Tensor | None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return Y.

        Parameters
        ----------
        U : Tensor, shape (m, ...)
            One sample a row, as the layer takes it.
        *more : Tensor or None
            What the call of the layer takes besides, in its order: for an
            `ImplicitRNN`, lengths and h0.
        generator : torch.Generator, optional
            Random numbers for layers that draw, in `train()` mode, come from here, else
            from torch's default; none in `eval()` mode.

        Raises
        ------
        InputError
            If an input is no tensor, or one inside a transform that cannot look into
            the layer, such as `torch.vmap`; and where the layer says so.
        ConvergenceError
            If a solve fails and `on_fail` is "raise"; in the backward pass,
            GradientConvergenceError.
        """
        inputs = (U, *more)
        if torch.jit.is_tracing() or any(isinstance(t, torch.fx.Proxy) for t in inputs):
            raise InputError(OUTSIDE)
        if not all(t is None or isinstance(t, torch.Tensor) for t in inputs):
            kinds = ", ".join(type(t).__name__ for t in inputs)
            raise InputError(
                f"a Module takes tensors, got {kinds}; use torch.from_numpy, or call its layer: "
                "module.layer(U)"
            )
        tensors, rng = self._tensors(), _Lazy(generator) if self.training else None
        given = [_cast(t, tensors) for t in inputs if t is not None]
        Y, _ = _Apply.apply(self, rng, tuple(t is not None for t in inputs), *given, *tensors)
        return Y

    def project_(self) -> None:
        """Put the parameters back into the set where the layer is well-posed.

        The nearest ones where that set is convex.

        Those that lie there already keep their bits.
        """
        tensors = dict(zip(self._names, self._tensors(), strict=True))
        arrays = {name: to_array(t) for name, t in tensors.items()}
        with torch.no_grad():
            for name, array in self._with(list(arrays.values())).project(arrays).items():
                if array is not arrays[name]:
                    tensors[name].copy_(to_tensor(array))

    def extra_repr(self) -> str:
        """The layer, for `print(module)`."""
        return repr(self._layer)


def _cast(t: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    """In the dtype of the parameters, by an operation that torch differentiates.

    Integers and booleans, such as lengths, as they are.
    """
    return t.to(parameters[0].dtype) if parameters and t.is_floating_point() else t


def to_implicit(
    module: torch.nn.Module, input_shape: Sequence[int], *, keep: bool | None = None
) -> ImplicitModel:
    """A network of torch as one implicit model, ``x = phi(A x + B u + b)``.

    Its answers are those of the network in evaluation mode, up to rounding. Without
    implicit layers in it, A is strictly block triangular, and a solve is one pass.

    Parameters
    ----------
    module : torch.nn.Module
        Of `Linear`, `Conv1d` and `Conv2d` (stride, zero padding, dilation, groups),
        `BatchNorm`, `LayerNorm`, `Dropout`, activations, average and max pooling,
        flattening, sums, means over pixels and `cat`; of functions that do the same; of
        layers of pyidl (`Module`). It is left as it is.
    input_shape : tuple of int
        Of one sample, such as (1, 28, 28). Inputs of the model are such samples, as
        rows.
    keep : bool, optional
        As for `pyidl.compose.to_implicit`.

    Returns
    -------
    ImplicitModel
        In the dtype of the network, on the host, with the pattern of its layers.
        Outputs are rows too.

    Raises
    ------
    InputError
        If a part of the network is none of these; it is named. If torch.fx cannot write
        the network down, or if the model does not answer like it on two random samples.

    Notes
    -----
    A maximum is taken by pairs, ``b + relu(a - b)``: where a and b differ by many
    orders of magnitude, the smaller one is lost to rounding. Weights that are shared,
    as those of a kernel are, stand in A once for every use, and are trained apart. A is
    a full array of n^2 numbers for n states.

    Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J.
    Math. Data Sci. 3(3), 2021, section 3.

    Examples
    --------
    >>> from torch import nn
    >>> conv = nn.Conv2d(1, 2, 3, padding=1)
    >>> end = [nn.Flatten(), nn.Linear(8, 3)]
    >>> net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), *end)
    >>> model = to_implicit(net, (1, 4, 4))
    >>> U = torch.ones(5, 1, 4, 4)
    >>> Y = model.predict(U.reshape(5, -1).numpy())
    >>> bool(np.allclose(Y, net(U).detach(), atol=1e-5))
    True
    >>> model.certificate().applies_to
    'Substitution'
    """
    return converted(module, input_shape, keep)
