r"""A network of torch as one implicit model.

`torch.fx` writes the network down as a list of operations, without running it. Each is
done to affine forms in the place of tensors (`pyidl.compose`):

    Linear, Conv1d, Conv2d, AvgPool     W v + b, with a sparse W
    BatchNorm                           g (v - mu) / sqrt(var + eps) + beta
    ReLU, Tanh, ...                     states x = phi(v)
    MaxPool                             max(a, b) = b + relu(a - b), by pairs
    +, -, cat, flatten, Dropout         sums, rows side by side, nothing

A batch norm before a padded convolution is right at the border: the zeros of the
padding come after the norm, and so have no part in its shift.

Source: El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit deep learning", SIAM J. Math.
Data Sci. 3(3), 2021, section 3.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import eye_array, kron
from torch import fx, nn

from pyidl.activations import layer_norm
from pyidl.compose.assembly import Assembly
from pyidl.compose.forms import Form, add, minus, stack, take
from pyidl.compose.networks import through
from pyidl.compose.torch_activations import activation_of
from pyidl.errors import InputError, expect, is_whole
from pyidl.interop.torch_compose_maps import (
    Windows,
    averages,
    convolution,
    diagonal,
    maxima,
    means,
)
from pyidl.layers import ImplicitModel

__all__ = ["Tensor", "converted"]

CURE = (
    "use Linear, Conv1d, Conv2d, BatchNorm, LayerNorm, Dropout, activations, pooling, flatten, "
    "sums and cat; the states of any network can be collected, sim.collect_states"
)

NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity)

SAME: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU, torch.relu_: nn.ReLU,
    F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
    F.gelu: nn.GELU, F.silu: nn.SiLU, F.elu: nn.ELU, F.leaky_relu: nn.LeakyReLU,
    F.softplus: nn.Softplus, F.hardtanh: nn.Hardtanh, F.softsign: nn.Softsign,
    F.softmax: nn.Softmax, torch.softmax: nn.Softmax, "softmax": nn.Softmax,
    F.max_pool1d: nn.MaxPool1d, F.max_pool2d: nn.MaxPool2d,
    F.avg_pool1d: nn.AvgPool1d, F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d, F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d,
}  # fmt: skip
"""Functions and methods, and the modules that do the same with the same options."""

OPTIONS = ("_stacklevel", "inplace", "training")
"""Options of functions that say nothing of a value in evaluation mode."""

BATCH = "the number of samples"


Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A form, and the shape in which torch has its components, without the batch."""

    form: Form
    shape: Sizes


class _Tracer(fx.Tracer):
    """Layers of pyidl are not looked into."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return _is_own(m) or super().is_leaf_module(m, qualified_name)


def converted(module: nn.Module, input_shape: Any, keep: bool | None) -> ImplicitModel:
    """See `pyidl.interop.torch.to_implicit`."""
    expect("module", module, nn.Module, "give a network of torch")
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if not shape or not all(is_whole(k) and k > 0 for k in shape):
        raise InputError(
            f"input_shape is {input_shape!r}; give the shape of one sample, such as (1, 8, 8)"
        )
    dtypes = {p.dtype for p in module.parameters()} or {torch.get_default_dtype()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise InputError(
            f"the parameters of the network have the dtypes {sorted(map(str, dtypes))}; one is "
            "needed, float32 or float64: module.float()"
        )
    tracer = _Tracer()
    module = nn.Sequential(module) if tracer.is_leaf_module(module, "") else module
    with _evaluation(module):
        try:
            graph = tracer.trace(module)
        except Exception as error:  # whatever the code of the network raises under a trace
            raise InputError(
                f"torch.fx cannot write down {type(module).__name__} ({error}); a forward without "
                "branches that depend on its input is needed"
            ) from error
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    if inputs != 1:
        raise InputError(
            f"{type(module).__name__} takes {inputs} inputs; an implicit model has one: give a "
            "module with one input"
        )
    dtype = dtypes.pop()
    U = torch.as_tensor(np.random.default_rng(0).normal(size=(2, *shape)), dtype=dtype)
    wanted = _answers(module, U)
    reading = _Reading(module, Assembly(math.prod(shape), keep), shape)
    model = reading.assembly.model(reading.run(graph).form, np, str(dtype).removeprefix("torch."))
    apart = np.max(np.abs(model.predict(U.reshape(2, -1).numpy()) - wanted))
    share = 1e-3 if dtype == torch.float32 else 1e-8  # an implicit layer has a tolerance
    if not apart <= share * np.max(np.abs(wanted)) < np.inf:  # a network may hide what it does
        raise InputError(
            f"the model is {apart:.2g} from {type(module).__name__}, whose largest output is "
            f"{np.max(np.abs(wanted)):.2g}: the network does what torch.fx does not see"
        )
    return model


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; in the end every part is in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _answers(module: nn.Module, U: torch.Tensor) -> Any:
    """What the network says in evaluation mode."""
    first = next(module.parameters(), U)
    try:
        with _evaluation(module), torch.no_grad():
            Y = module(U.to(first.device, copy=True))
    except RuntimeError as error:
        raise InputError(
            f"{type(module).__name__} does not take samples of input_shape {tuple(U.shape[1:])}: "
            f"{error}"
        ) from error
    return Y.reshape(2, -1).cpu().numpy() if isinstance(Y, torch.Tensor) else None


class _Reading:
    """The values of the nodes of a graph so far."""

    def __init__(self, module: nn.Module, assembly: Assembly, shape: Sizes) -> None:
        self.module, self.assembly, self.shape = module, assembly, shape
        self.values: dict[fx.Node, Any] = {}

    def run(self, graph: fx.Graph) -> Tensor:
        """The value of the output."""
        for node in graph.nodes:
            if node.op == "output":
                result = self._known(node.args[0])
                if isinstance(result, Tensor):
                    return result
                raise InputError(
                    f"{type(self.module).__name__} returns {type(result).__name__}; give a module "
                    "that returns one tensor"
                )
            self.values[node] = self._value(node)
        raise AssertionError("a graph without an output")

    def _known(self, argument: Any) -> Any:
        """Arguments with their values in the place of nodes."""
        return fx.node.map_arg(argument, lambda node: self.values[node])

    def _value(self, node: fx.Node) -> Any:
        args, options = self._known(node.args), self._known(node.kwargs)
        if node.op == "placeholder":
            value = Tensor(self.assembly.input, self.shape)
        elif node.op == "call_module":
            part = self.module.get_submodule(str(node.target))
            name = f"{node.target} ({type(part).__name__})"
            if options or len(args) != 1 or not isinstance(args[0], Tensor):
                raise InputError(f"{name} is to read one tensor, given by position; {CURE}")
            value = self._module(part, name, args[0])
        elif node.op == "get_attr":
            raise InputError(f"{node.target} is a parameter outside a layer; {CURE}")
        else:
            value = self._function(node.target, f"{node.target} in {node.name}", args, options)
        if isinstance(value, Tensor):
            value.form.readers += max(len(node.users), 1) - 1
            self._overwrite(node, value)
        return value

    def _overwrite(self, node: fx.Node, value: Tensor) -> None:
        """What works in place changes its input, and all views of it."""
        part = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = getattr(node.target, "__name__", str(node.target))
        here = getattr(part, "inplace", node.kwargs.get("inplace", False))
        if here or name.endswith("_") or name in ("iadd", "isub", "imul"):
            before = self._known(node.args[0])
            for other, old in self.values.items():
                if isinstance(old, Tensor) and old.form is before.form:
                    self.values[other] = Tensor(value.form, old.shape)

    # ------------------------------------------------------------------------ functions

    def _function(self, target: Any, name: str, args: Any, options: Any) -> Any:
        """What is no module: sums, views, and functions that modules have too."""
        known = any(isinstance(a, (Tensor, list, tuple)) for a in args)
        if any(isinstance(a, (Tensor, list, tuple)) for a in options.values()) and not known:
            raise InputError(f"{name} reads a tensor by its name; give tensors by position")
        if BATCH in args and not known:
            raise InputError(f"{name} counts with the number of samples; leave that axis alone")
        if not known:
            return target(*args, **options)  # sizes
        if target == "size" or (target is getattr and args[1] == "shape"):
            sizes = (BATCH, *args[0].shape)
            return sizes[args[1]] if target == "size" and len(args) > 1 else sizes
        if target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]]
        options = {k: a for k, a in options.items() if k not in OPTIONS and a is not None}
        if target in SAME:
            _check_options(SAME[target], name, args[1:], options)
            return self._module(SAME[target](*args[1:], **options), name, args[0])
        if target in FUNCTIONS:
            _check_options(FUNCTIONS[target], name, (self, name, *args), options)
            return FUNCTIONS[target](self, name, *args, **options)
        raise InputError(f"{name} is not written as affine maps and activations; {CURE}")

    def _difference(self, name: str, one: Any, other: Any) -> Tensor:
        return self._sum(name, one, other, -1)

    def _sum(self, name: str, one: Any, other: Any, sign: int = 1) -> Tensor:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape:
                raise InputError(
                    f"{name} adds shapes {one.shape} and {other.shape}; make them equal"
                )
            return Tensor(add(one.form, other.form if sign > 0 else minus(other.form)), one.shape)
        if not isinstance(one, Tensor):  # number +- tensor
            one, other = (other if sign > 0 else Tensor(minus(other.form), other.shape)), one
            sign = 1
        if not isinstance(other, (int, float)):
            raise InputError(f"{name} adds {type(other).__name__}; {CURE}")
        constant = np.full(one.form.width, sign * float(other))
        return self._affine(one, eye_array(one.form.width), constant)

    def _quotient(self, name: str, one: Any, other: Any) -> Tensor:
        return self._product(name, one, other, -1)

    def _product(self, name: str, one: Any, other: Any, power: int = 1) -> Tensor:
        v, scale = (one, other) if isinstance(one, Tensor) else (other, one)
        if not isinstance(scale, (int, float)) or (power < 0 and v is other):
            raise InputError(f"{name} is not a product with a number; {CURE}")
        return self._affine(v, float(scale) ** power * eye_array(v.form.width))

    def _flat(self, name: str, v: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return self._module(nn.Flatten(start_dim, end_dim), name, v)

    def _view(self, name: str, value: Tensor, *sizes: Any) -> Tensor:
        asked = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        batch, *rest = asked or [None]
        width, known = value.form.width, math.prod(k for k in rest if k != -1)
        shape = tuple(width // known if k == -1 else k for k in rest)
        if batch not in (BATCH, -1) or math.prod(shape) != width or (batch == -1 and -1 in rest):
            raise InputError(f"{name} gives shape {asked}; the first axis, of samples, must stay")
        return Tensor(value.form, shape)

    def _cat(self, name: str, values: Sequence[Tensor], dim: int = 0) -> Tensor:
        rank = len(values[0].shape) + 1
        axis = dim % rank - 1
        if axis < 0:
            raise InputError(f"{name} joins samples; join another axis")
        ends = np.cumsum([0, *(v.form.width for v in values)])
        numbers = [
            start + np.arange(v.form.width).reshape(v.shape)
            for start, v in zip(ends, values, strict=False)
        ]
        joined = np.concatenate(numbers, axis=axis)
        return Tensor(take(stack([v.form for v in values]), joined.ravel()), joined.shape)

    def _mean(self, name: str, v: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        rank = len(v.shape) + 1
        given = (dim,) if isinstance(dim, int) else dim or (0,)
        axes = tuple(sorted(axis % rank - 1 for axis in given))
        if axes[0] < 0:
            raise InputError(f"{name} is a mean over samples; use other axes: mean(dim=(2, 3))")
        shape = [1 if i in axes else k for i, k in enumerate(v.shape) if keepdim or i not in axes]
        return self._affine(v, means(v.shape, axes), shape=tuple(shape))

    # -------------------------------------------------------------------------- modules

    def _affine(self, v: Tensor, W: Any, b: Any = None, shape: Any = None) -> Tensor:
        return Tensor(self.assembly.affine(v.form, W, b), v.shape if shape is None else shape)

    def _module(self, part: Any, name: str, v: Tensor) -> Tensor:
        """What a module of torch does in evaluation mode."""
        if isinstance(part, NOTHING):
            return v
        if _is_own(part):
            return self._own(part, name, v)
        if isinstance(part, nn.Flatten):
            start, end = part.start_dim % (len(v.shape) + 1), part.end_dim % (len(v.shape) + 1)
            if start == 0:
                raise InputError(f"{name} flattens samples; use start_dim=1")
            inside = math.prod(v.shape[start - 1 : end])
            return Tensor(v.form, (*v.shape[: start - 1], inside, *v.shape[end:]))
        for kinds, rule in RULES.items():
            if isinstance(part, kinds):
                return rule(self, part, name, v)
        phi = activation_of(part)
        if phi is None or (phi.vector_blocks(v.form.width) and len(v.shape) > 1):
            raise InputError(f"{name} is not written as affine maps and activations; {CURE}")
        return Tensor(self.assembly.activation(v.form, phi), v.shape)

    def _own(self, part: Any, name: str, v: Tensor) -> Tensor:
        if len(v.shape) > 1:
            raise InputError(f"{name} reads shape {v.shape}; a layer of pyidl must read rows")
        (form,) = through(self.assembly, part.layer, [v.form], False)
        return Tensor(form, (form.width,))

    def _linear(self, part: Any, name: str, v: Tensor) -> Tensor:
        W, b, lead = _host(part.weight), _bias(part), math.prod(v.shape[:-1])
        whole = W if lead == 1 else kron(eye_array(lead), W, format="csr")
        b = b if b is None else np.tile(b, lead)
        return self._affine(v, whole, b, (*v.shape[:-1], len(W)))

    def _convolution(self, part: Any, name: str, v: Tensor) -> Tensor:
        if part.padding_mode != "zeros":
            raise InputError(f"{name} has padding_mode={part.padding_mode!r}; use zeros")
        K, b = _host(part.weight), _bias(part)
        k, (_, *image) = part.kernel_size, v.shape
        pad = part.padding
        if pad == "same":
            total = [e * (size - 1) for e, size in zip(part.dilation, k, strict=True)]
            pad = [(t // 2, t - t // 2) for t in total]
        else:
            pad = [(p, p) for p in ((0,) * len(k) if pad == "valid" else pad)]
        windows = Windows.of(tuple(image), k, part.stride, pad, part.dilation)
        W = convolution(K, windows, math.prod(image), part.groups)
        b = b if b is None else np.repeat(b, math.prod(windows.shape))
        return self._affine(v, W, b, (len(K), *windows.shape))

    def _batch_norm(self, part: Any, name: str, v: Tensor) -> Tensor:
        if part.running_mean is None:
            raise InputError(f"{name} has no running statistics; use track_running_stats=True")
        mean, var = _host(part.running_mean), _host(part.running_var)
        scale: Any = 1.0 / np.sqrt(var + part.eps)
        shift: Any = 0.0
        if part.affine:
            scale, shift = scale * _host(part.weight), _host(part.bias)
        pixels = math.prod(v.shape[1:])
        W = diagonal(np.repeat(scale, pixels))
        return self._affine(v, W, np.repeat(shift - scale * mean, pixels))

    def _layer_norm(self, part: Any, name: str, v: Tensor) -> Tensor:
        if tuple(part.normalized_shape) != v.shape:
            raise InputError(f"{name} norms parts of shape {v.shape}; norm all of a sample")
        x = Tensor(self.assembly.activation(v.form, layer_norm(part.eps)), v.shape)
        if not part.elementwise_affine:
            return x
        return self._affine(x, diagonal(_host(part.weight).ravel()), _bias(part))

    def _pool(self, part: Any, name: str, v: Tensor) -> Tensor:
        channels, *image = v.shape
        rank, adaptive = len(image), hasattr(part, "output_size")
        if adaptive:
            asked = _each(part.output_size, rank)
            sizes = [a if b is None else b for a, b in zip(image, asked, strict=True)]
            if any(a % b for a, b in zip(image, sizes, strict=True)):
                raise InputError(f"{name} cuts {image} into {sizes}, which does not divide it")
            kernel = stride = tuple(a // b for a, b in zip(image, sizes, strict=True))
            padding, dilation = (0,) * rank, (1,) * rank
        else:
            kernel, stride = _each(part.kernel_size, rank), _each(part.stride, rank)
            padding = _each(part.padding, rank)
            dilation = _each(getattr(part, "dilation", 1), rank)
            if part.ceil_mode:
                raise InputError(f"{name} has ceil_mode=True; use False")
        both = [(p, p) for p in padding]
        windows, pixels = Windows.of(tuple(image), kernel, stride, both, dilation), math.prod(image)
        shape = channels, *windows.shape
        if "Max" in type(part).__name__:
            if not windows.there.any(axis=0).all():
                raise InputError(f"{name} has windows of padding alone; use less padding")
            largest = self.assembly.maximum(v.form, maxima(channels, windows, pixels))
            return Tensor(largest, shape)
        padded = adaptive or part.count_include_pad
        divisor = len(windows.pixel) if padded else windows.there.sum(axis=0)
        divisor = getattr(part, "divisor_override", None) or divisor
        return self._affine(v, averages(channels, windows, pixels, divisor), shape=shape)


FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _Reading._sum),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _Reading._difference),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _Reading._product),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), _Reading._quotient),
    **dict.fromkeys((torch.flatten, "flatten"), _Reading._flat),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _Reading._view),
    **dict.fromkeys((torch.cat, torch.concat), _Reading._cat),
    **dict.fromkeys((torch.mean, "mean"), _Reading._mean),
}
"""Functions, operators and methods that are no modules."""

RULES: dict[Any, Callable[[_Reading, Any, str, Tensor], Tensor]] = {
    nn.Linear: _Reading._linear,
    (nn.Conv1d, nn.Conv2d): _Reading._convolution,
    (nn.BatchNorm1d, nn.BatchNorm2d): _Reading._batch_norm,
    nn.LayerNorm: _Reading._layer_norm,
    (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d): _Reading._pool,
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d): _Reading._pool,
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): _Reading._pool,
}


def _check_options(called: Callable[..., Any], name: str, args: Any, options: Any) -> None:
    try:
        inspect.signature(called).bind(*args, **options)
    except TypeError as error:
        raise InputError(f"{name} has an option that is not known: {error}") from error


def _is_own(part: Any) -> bool:
    """Whether it is a `pyidl.interop.torch.Module`, which stands above this file."""
    return any(base.__module__ == "pyidl.interop.torch" for base in type(part).__mro__)


def _each(size: Any, rank: int) -> Sizes:
    return tuple(size) if isinstance(size, (tuple, list)) else (size,) * rank


def _host(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _bias(part: Any) -> np.ndarray | None:
    return None if part.bias is None else _host(part.bias).ravel()
