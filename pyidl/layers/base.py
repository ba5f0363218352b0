"""A layer is a callable that returns ``(Y, pullback)``.

Its parameters are a flat dictionary, replaced as a whole.

    Y, pull = layer(U)              the map
    dU, grads = pull(dY)            its transposed derivative, for any number of dY

A layer is its configuration, fixed when it is built, and its parameters; there is no
other state. Each subclass is a dataclass of its configuration and says how its
parameters are drawn; its heart is `_forward`, where the derivative stands below the
line it differentiates.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from pyidl.arrays import backend
from pyidl.arrays.backend import DTYPES, namespace
from pyidl.arrays.table import Table
from pyidl.errors import ConvergenceWarning, InputError, expect, is_whole
from pyidl.layers.timeline import Timeline
from pyidl.solvers.solution import OnFail, Solution, check_on_fail
from pyidl.typing import Array, Grads, Namespace, Params, Rng, Tol
from pyidl.wellposed.certificate import Certificate, Norm

__all__ = [
    "Call",
    "Explicit",
    "Layer",
    "Parameterless",
    "Pullback",
    "check_dtype",
    "check_width",
    "check_widths",
    "finite_output",
    "missing_axis",
]


_ELSEWHERE = {
    "fit": "pyidl.fit(model, U, targets, loss=..., epochs=...)",
    "train": "pyidl.fit(model, U, targets, loss=..., epochs=...)",
    "compile": "nothing is compiled; pyidl.fit takes the loss and the optimiser",
    "backward": "Y, pull = model(U), then dU, grads = pull(dY)",
    "zero_grad": "nothing to reset: pull(dY) returns the gradients and keeps nothing",
    "eval": "model.predict(U), which draws nothing and keeps nothing",
    "score": "a metric of model.predict(U), such as pyidl.metrics.accuracy",
    "evaluate": "a metric of model.predict(U), such as pyidl.metrics.accuracy",
    "parameters": "model.params, a dictionary that is replaced as a whole",
    "state_dict": "model.params, or pyidl.save(path, model)",
    "load_state_dict": "model.params = {...}, or pyidl.load(path)",
    "weights": "model.params, a dictionary that is replaced as a whole",
}
"""What users of other libraries ask a model for, and what it is here."""


@dataclass(frozen=True)
class Call:
    """What a call says besides its input; a layer of layers hands it down."""

    rng: np.random.Generator | None = None
    on_fail: OnFail = "raise"
    line: Timeline | None = None
    """Which samples have which steps, for sequences of several lengths.

    None where all have all.
    """
    h0: Any = None
    """Where a recurrence starts, (m, r); None for zero. Only its own call says it."""

    def __post_init__(self) -> None:
        check_on_fail(self.on_fail)

    def of(self, samples: slice) -> Call:
        """The same for some of the samples."""
        line = None if self.line is None else self.line.of(samples)
        h0 = None if self.h0 is None else self.h0[samples, ...]
        return dataclasses.replace(self, line=line, h0=h0)


@dataclass(frozen=True, repr=False)
class Pullback(ABC):
    """The transposed derivative of a layer at one input: ``dY -> (dU, grads)``.

    From the gradient of a loss with respect to the output of the layer it makes those
    with respect to its inputs and its parameters.

    Calling it touches nothing: it may be called twice, for several cotangents, and
    after the layer's parameters have been replaced. It keeps a copy of the inputs,
    unless they are frozen: read-only, and owners of their memory. So a caller may use
    its buffers again.

    Gradients that overflow are infinite or NaN; an optimiser's step refuses them.

    Attributes
    ----------
    output : array
        Y, what the layer returned together with this pullback.

    Examples
    --------
    >>> from pyidl import Linear
    >>> Y, pull = Linear(3, 2, rng=0)(np.ones((5, 3)))
    >>> dU, grads = pull(np.ones_like(Y))
    >>> dU.shape, grads["W"].shape, grads["b"]
    ((5, 3), (2, 3), array([5., 5.], dtype=float32))
    >>> pull(np.ones_like(Y), inputs=False)[0] is None
    True
    """

    output: Array

    def __call__(self, dY: Array, inputs: bool = True) -> tuple[Any, Grads]:
        """Return ``(dU, grads)``.

        Parameters
        ----------
        dY : array
            The gradient of a loss with respect to Y, and of its shape.
        inputs : bool
            Whether dU is wanted too.

        Returns
        -------
        dU : array or None
            Of the shape of the input; None with ``inputs=False``. It is a full array
            also where the input was sparse: a loss feels what an entry would add that
            is 0 now. Where it would be too large, say ``inputs=False``.
        grads : dict
            An array for each parameter, under its name.

        Raises
        ------
        InputError
            If dY has not the shape of the output, or is not finite.
        GradientConvergenceError
            If an adjoint solve fails, unless the forward call said ``on_fail="warn"``
            or "ignore".
        """
        return self.rule(self._admit(dY, inputs), inputs)

    def _admit(self, dY: Any, inputs: Any = True) -> Any:
        """Check and cast the cotangent."""
        expect("inputs", inputs, bool, "use True or False")
        xp = namespace(self.output)
        cotangent = backend.as_real(dY, name="dY", xp=xp, dtype=backend.real_dtype(self.output))
        if cotangent.shape != self.output.shape:
            raise InputError(
                f"dY has shape {cotangent.shape}, the output {self.output.shape}; "
                "they must be equal"
            )
        return cotangent

    @abstractmethod
    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """The pullback itself, for a dY that has been checked."""

    @property
    def reads(self) -> Mapping[str, Any]:
        """What the matrices multiply that the output is linear in, by their names.

        None for a bias. ``{"C": X, "D": U, "d": None}`` says ``Y = X C^T + U D^T + d``.
        Empty where the output is no such sum: nothing is then known of it.
        """
        return {}

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """The forward solves behind the output, for whoever counts steps."""
        return ()

    @property
    def converged(self) -> np.ndarray:
        """Which samples have only solves that converged, forward.

        Boolean, (m,), on the host.
        """
        converged = np.ones(self.output.shape[0], bool)
        for solution in self.solutions:
            converged &= solution.converged
        return converged

    def __repr__(self) -> str:
        return f"{type(self).__name__}(output {self.output.shape})"


@dataclass(frozen=True, repr=False)
class Explicit(Pullback):
    """The pullback of a layer without a solve.

    A closure over what the forward pass saw.

    Attributes
    ----------
    output : array
        Y.
    backward : callable
        ``backward(dY, inputs) -> (dU, grads)``, for a dY that has been checked.

    Examples
    --------
    >>> U = np.array([[1.0, 3.0]])
    >>> pull = Explicit(U**2, lambda dY, inputs: (2 * U * dY if inputs else None, {}))
    >>> pull(np.ones((1, 2)))
    (array([[2., 6.]]), {})
    """

    backward: Callable[[Any, bool], tuple[Any, Grads]]

    def rule(self, dY: Any, inputs: bool) -> tuple[Any, Grads]:
        """Call the closure."""
        return self.backward(dY, inputs)


class Layer(ABC):
    """Base class of all layers and models.

    A subclass is a dataclass, ``@dataclass(eq=False, repr=False)``, of its
    configuration and has at least `_validate`, `_shapes`, `_draw`, `_check` and
    `_forward`. A field ``rng: InitVar = None`` makes the seed of `_draw` an argument.

    Examples
    --------
    >>> @dataclass(eq=False, repr=False)
    ... class Scale(Layer):
    ...     width: int
    ...     dtype: str = "float64"
    ...
    ...     def _validate(self):
    ...         check_widths(self, "width")
    ...
    ...     def _shapes(self):
    ...         return {"s": (self.width,)}
    ...
    ...     def _draw(self, generator):
    ...         return {"s": np.full(self.width, 2.0)}
    ...
    ...     def _check(self, U):
    ...         assert U.shape[1] == self.width
    ...
    ...     def _forward(self, U, call):
    ...         s = self.params["s"]
    ...
    ...         def backward(dY, inputs):
    ...             return dY * s, {"s": sum(dY * U)}
    ...
    ...         return U * s, Explicit(U * s, backward)
    >>> Y, pull = Scale(2)(np.array([[1.0, 3.0]]))
    >>> Y, pull(np.ones((1, 2)))[1]
    (array([[2., 6.]]), {'s': array([1., 3.])})
    """

    _params: Params

    tokenwise: ClassVar[bool] = False
    """Whether a row of the output depends on its own row of the input alone."""

    takes_sparse: ClassVar[bool] = False
    """Whether inputs may be sparse: `_forward` then meets compressed rows (CSR)."""

    dtype: str

    def __post_init__(self, rng: Rng = None) -> None:
        """Build the layer: validate, draw, confine, cast, project, set."""
        self._validate()
        drawn = self._draw(backend.as_generator(rng))
        for key in drawn:
            mask = self.support(key)
            inside = drawn[key] if mask is None else drawn[key] * mask
            drawn[key] = inside.astype(self.dtype)
        # Projected after the cast: what is rounded later may leave the set.
        self.params = cast(Params, self.project(drawn))

    if not TYPE_CHECKING:  # to mypy, every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: say where it is."""
            cure = f"; here it is {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{cure}",
                name=name,
                obj=self,
            )

    # ------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def _validate(self) -> None:
        """Check the configuration, and put it into its normal form."""

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """Initial parameters, in float64 on the host; none where there are none."""
        return {}

    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""

    @abstractmethod
    def _forward(self, U: Any, call: Call) -> tuple[Any, Pullback]:
        """The map and its pullback, for inputs that have been checked."""

    def _output(self, U: Any, call: Call) -> Any:
        """The map alone, where that saves something."""
        return self._forward(U, call)[0]

    @abstractmethod
    def _check(self, U: Any) -> None:
        """Refuse an input of the wrong shape."""

    @property
    def takes_lengths(self) -> bool:
        """Whether the layer looks at `Call.line`.

        Sequences of a batch may then have several lengths.
        """
        return False

    def _widths(self) -> tuple[int | None, int | None]:
        """The last dimension of input and output, or None where any will do."""
        return None, None

    # ----------------------------------------------------------------------- calling it

    def __call__(
        self, U: Any, *, rng: Rng = None, on_fail: OnFail = "raise"
    ) -> tuple[Any, Pullback]:
        """Return ``(Y, pullback)``.

        Parameters
        ----------
        U : array, shape (m, input_dim)
            One sample a row, in the library and on the device of the parameters; cast
            to the layer's dtype. For an `ImplicitModel` and a `Linear` it may be a
            sparse matrix of SciPy (on the CPU), which is never filled in.
        rng : Generator, int or None
            For layers that draw random numbers; the others ignore it.
        on_fail : {"raise", "warn", "ignore"}
            What happens to samples whose solve, forward or adjoint, does not converge.

        Raises
        ------
        InputError
            If U has a wrong shape, no samples, or entries that are not finite real
            numbers; on the CPU also, if `on_fail` is "raise", if Y overflows.
        DeviceMismatchError
            If U lives elsewhere than the parameters.
        ConvergenceError
            If a solve fails and `on_fail` is "raise".
        """
        call = Call(None if rng is None else backend.as_generator(rng), on_fail)
        Y, pull = self._forward(backend.own(self._admit(U), U), call)
        return finite_output(Y, on_fail), pull

    def _admit(self, U: Any) -> Any:
        """Check and cast the input."""
        xp = self.xp
        if not backend.is_sparse(U):
            admitted = backend.as_real(U, name="U", xp=xp, dtype=self.dtype)
        elif self.takes_sparse:
            admitted = backend.compressed_rows(U, name="U", xp=xp, dtype=self.dtype)
        else:
            raise InputError(
                f"U is sparse, and {type(self).__name__} takes full arrays; give U.toarray()"
            )
        if xp is not np:
            namespace(admitted, *self.params.values())  # refuses a model on another GPU
        self._check(admitted)
        return admitted

    def predict(self, U: Any, *, batch_size: int | None = None, on_fail: OnFail = "raise") -> Any:
        """Return Y alone, in batches of at most `batch_size` rows.

        Parameters
        ----------
        U, on_fail
            As in a call.
        batch_size : int, optional
            A number to choose where memory matters; all rows at once if left out.

        Returns
        -------
        array
            Y.

        Examples
        --------
        >>> from pyidl import Linear
        >>> Linear(3, 2, rng=0).predict(np.ones((5, 3)), batch_size=2).shape
        (5, 2)
        """
        return self._in_batches(self._admit(U), batch_size, Call(on_fail=on_fail))

    def _in_batches(self, U: Any, batch_size: int | None, call: Call) -> Any:
        """Y alone, for an input that has been checked."""
        m = U.shape[0]
        if batch_size is None or check_width("batch_size", batch_size) >= m:
            return finite_output(self._output(U, call), call.on_fail)
        batches = (slice(i, min(i + batch_size, m)) for i in range(0, m, batch_size))
        parts = [self._output(U[batch, ...], call.of(batch)) for batch in batches]
        return finite_output(namespace(parts[0]).concat(parts), call.on_fail)

    # -------------------------------------------------------------- one token at a time

    def start(self, m: int) -> Any:
        """What the layer remembers of m sequences that have no token yet.

        Parameters
        ----------
        m : int
            How many sequences go on together.

        Returns
        -------
        cache
            For `step`; None where every token is treated alone.

        Raises
        ------
        InputError
            If an output depends on later tokens, or the layer does not know what to
            remember.

        Examples
        --------
        >>> from pyidl import PositionEmbedding
        >>> layer = PositionEmbedding(5, 2, rng=0)
        >>> U, cache = np.ones((4, 3, 2)), layer.start(4)
        >>> for t in range(3):
        ...     y, cache = layer.step(U[:, t], cache)
        >>> bool(np.allclose(y, layer.predict(U)[:, -1]))
        True
        """
        if not self.tokenwise:
            raise InputError(
                f"{type(self).__name__} does not go on token by token; call it with whole sequences"
            )
        return None

    def step(self, u: Any, cache: Any, *, on_fail: OnFail = "raise") -> tuple[Any, Any]:
        """Return ``(y, cache)`` after one more token of m sequences.

        The outputs for tokens one after another are those for the whole sequence.

        Parameters
        ----------
        u : array, shape (m, p), or integers (m,) for an `Embedding`
            The token.
        cache
            What `start` or the last step returned. It stays as it was.
        on_fail : {"raise", "warn", "ignore"}
            As in a call.

        Returns
        -------
        y : array, shape (m, q)
        cache
            For the next step.
        """
        call = Call(on_fail=on_fail)
        return finite_output(self._forward(self._admit(u), call)[0], on_fail), cache

    # ------------------------------------------------------------------- its parameters

    @property
    def params(self) -> Params:
        """The parameters: a read-only mapping of arrays.

        Assign a whole new mapping to change them.

        Raises
        ------
        InputError
            If names or shapes of a new mapping do not fit, or an entry is not a finite
            real number. The layer then stays as it was.

        Examples
        --------
        >>> from pyidl import Linear
        >>> layer = Linear(3, 2, rng=0)
        >>> layer.params = {**layer.params, "b": np.ones(2)}
        >>> layer.params["b"]
        array([1., 1.], dtype=float32)
        """
        return self._params

    @params.setter
    def params(self, new: Mapping[str, Any]) -> None:
        self._store(self._checked(new))

    def _store(self, checked: Params) -> None:
        for layer, kept in self._read(checked):
            for name, value in kept.items():
                object.__setattr__(layer, name, value)

    def _read(self, checked: Params) -> list[tuple[Layer, dict[str, Any]]]:
        """What this layer, and those within it, will keep of the parameters.

        All is made, if memory lasts, before anything is stored.
        """
        return [(self, {"_params": checked})]

    def _checked(self, new: Mapping[str, Any]) -> Params:
        """Read-only copies of the parameters in the layer's dtype, all of them checked.

        What an optimiser has made is read-only and owns its memory, and is not copied
        again.
        """
        shapes = self._shapes()
        expect(
            "params", new, Mapping, "a mapping of names to arrays is needed, such as `params` gives"
        )
        if set(new) != set(shapes):
            raise InputError(
                f"{type(self).__name__} has the parameters {sorted(shapes)}; got {sorted(new)}"
            )
        if not shapes:
            return MappingProxyType({})
        arrays = {key: new[key] for key in shapes}
        owners = [a for a in arrays.values() if backend.is_array(a)]
        xp = namespace(*owners) if owners else np
        checked = {}
        for key, array in backend.all_as_real(arrays, xp=xp, dtype=self.dtype).items():
            if array.shape != shapes[key]:
                raise InputError(
                    f"parameter {key} has shape {array.shape}; "
                    f"{type(self).__name__} needs {shapes[key]}"
                )
            checked[key] = backend.frozen(xp, array)
        return MappingProxyType(checked)

    def support(self, name: str) -> np.ndarray | None:
        """Where a parameter may differ from zero.

        A boolean array on the host, or None for everywhere.
        """
        return None

    def project(self, params: Params) -> dict[str, Array]:
        """Return parameters in the set where the layer is well-posed.

        For a layer without a fixed point, those given.

        Parameters
        ----------
        params : mapping
            Such as an optimiser's step returns.

        Returns
        -------
        dict
        """
        return dict(params)

    def certificate(self, explain: bool = False) -> Certificate:
        """What is proven about the layer's fixed points.

        An explicit layer has none, and so nothing to prove.

        Parameters
        ----------
        explain : bool
            Whether the other conditions are listed too, with what they prove or why
            they fail.

        Returns
        -------
        Certificate
        """
        return Certificate(
            True, 0.0, Norm(), "one evaluation", "an explicit map, without a fixed point"
        )

    def summary(self, certificate: bool = True) -> Table:
        """Parts, parameters with shapes and sizes, equations, certificates: a table.

        Parameters
        ----------
        certificate : bool
            Whether the certificate of every fixed point is computed, which costs as
            much as the method of that name: for n states some factorisations of n x n
            matrices. Nothing else is computed. In a notebook a model is shown by the
            same table, without certificates.

        Returns
        -------
        Table
            Shown as text where it is printed.

        Examples
        --------
        >>> from pyidl import ImplicitModel, Linear, Sequential
        >>> Sequential(ImplicitModel(2, 3, 4, rng=0), "tanh", Linear(3, 1)).summary()
        Sequential
        part  layer                        parameter  shape   numbers
              Sequential
        0     ImplicitModel 2 -> 3, relu                           49
                                           A          (4, 4)       16
                                           B          (4, 2)        8
                                           C          (3, 4)       12
                                           D          (3, 2)        6
                                           b          (4,)          4
                                           d          (3,)          3
        1     Pointwise, tanh                                       0
        2     Linear 3 -> 1                                         4
                                           W          (1, 3)        3
                                           b          (1,)          1
        0: 4 states a sample in InfNorm(...), solved by Auto, adjoint by Auto
        0: certified, Picard contracts by ... per step
        in all 53 numbers, 212 bytes, float32 on cpu
        """
        expect("certificate", certificate, bool, "use True or False")
        rows, notes = self._outline("", certificate)
        count = sum(math.prod(shape) for shape in self._shapes().values())
        size = count * np.dtype(self.dtype).itemsize if count else 0
        stored = f"{self.dtype} on {self._place}" if count else "any dtype on any device"
        total = f"in all {count:,} numbers, {size:,} bytes, {stored}"
        head = ("part", "layer", "parameter", "shape", "numbers")
        return Table(type(self).__name__, head, tuple(rows), (*notes, total))

    def _outline(self, part: str, certify: bool) -> tuple[list[tuple[str, ...]], list[str]]:
        """Rows and notes of the summary; `part` is its place in a model."""
        (needs, gives), phi = self._widths(), getattr(self, "activation", None)
        words = type(self).__name__ + (f" {needs} -> {gives}" if needs and gives else "")
        sizes = {key: math.prod(shape) for key, shape in self._shapes().items()}
        rows: list[tuple[str, ...]] = [
            (part, words + (f", {phi}" if phi else ""), "", "", f"{sum(sizes.values()):,}"),
            *(
                ("", "", key, str(shape), f"{sizes[key]:,}")
                for key, shape in self._shapes().items()
            ),
        ]
        notes = [self._equation()] if self._equation() else []
        if type(self).certificate is not Layer.certificate:
            notes.append(
                self.certificate().in_a_line()
                if certify
                else "its certificate is not computed here; see certificate()"
            )
        return rows, [f"{part}: {note}" if part else note for note in notes]

    def _equation(self) -> str:
        """For the summary: the fixed point, its set and its solvers, if any."""
        return ""

    def _repr_html_(self) -> str:
        """What Jupyter shows: the summary, for which nothing is computed."""
        return self.summary(certificate=False)._repr_html_()

    # ----------------------------------------------------- copies that differ somewhere

    @property
    def _place(self) -> str:
        """The device of the parameters."""
        owned = next(iter(self.params.values()), None)
        return "any device" if owned is None else str(backend.device_of(owned))

    @property
    def xp(self) -> Namespace:
        """The module that owns the parameters; NumPy for a layer without."""
        return namespace(*self.params.values()) if self.params else np

    def to(self, device: str) -> Self:
        """Return the same layer on ``"cpu"`` or ``"cuda"``.

        `pyidl.to_device` moves its parameters.
        """
        return self._with(
            self._config(), {key: backend.to_device(a, device) for key, a in self.params.items()}
        )

    def astype(self, dtype: str) -> Self:
        """Return the same layer computing in ``"float32"`` or ``"float64"``.

        Examples
        --------
        >>> from pyidl import Linear
        >>> Linear(3, 2, rng=0).astype("float64").predict(np.ones((1, 3))).dtype
        dtype('float64')
        """
        return self._with({**self._config(), "dtype": check_dtype(dtype)}, self.params)

    def replace(self, **changes: Any) -> Self:
        """Return a layer with the same parameters and some other options.

        Parameters
        ----------
        **changes
            The options of the constructor that change, but for `rng`.

        Returns
        -------
        Layer

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> model = ImplicitModel(3, 2, 10, rng=0).replace(activation="tanh")
        >>> model.activation.name
        'tanh'

        Raises
        ------
        InputError
            If a name is not part of the configuration, or the parameters do not fit the
            new one.
        """
        config = self._config()
        unknown = sorted(set(changes) - set(config))
        if unknown:
            raise InputError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; "
                f"it has {', '.join(config)}"
            )
        return self._with({**config, **changes}, self.params)

    def with_tol(self, tol: Tol) -> Self:
        """Return the layer at this tolerance, or at a pair (forward, adjoint).

        An explicit layer is returned as it is.

        Parameters
        ----------
        tol : float or pair of floats
            Between 0 and 1.

        Examples
        --------
        >>> from pyidl import ImplicitModel
        >>> ImplicitModel(3, 2, 10, rng=0).with_tol((1e-4, 1e-6)).forward.tol
        0.0001
        """
        return self

    def at_step(self, count: int) -> Self:
        """The layer as it is in step `count` + 1 of its training: as it always is.

        `fit` asks for it before every step. A layer with options that follow a schedule
        answers with another that shares its parts, and so their parameters.
        """
        return self

    def _config(self) -> dict[str, Any]:
        """The fields of the dataclass."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields}

    @classmethod
    def _with(cls, config: Mapping[str, Any], params: Mapping[str, Any]) -> Self:
        """Build a layer from its configuration and its parameters, drawing nothing."""
        layer = object.__new__(cls)
        for name, value in config.items():
            object.__setattr__(layer, name, value)
        layer._validate()
        layer.params = params
        return layer

    def _holding(self, params: Mapping[str, Any]) -> Self:
        """The same layer with other parameters.

        Its configuration is not checked again.
        """
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.params = params
        return twin

    # ------------------------------------------------------------------ being an object

    def __setattr__(self, name: str, value: Any) -> None:
        if "_params" in self.__dict__ and name != "params":
            raise AttributeError(
                f"{name} cannot be set: a layer's configuration is fixed; "
                f"use layer.replace({name}=...)"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._with, (self._config(), dict(self.params))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(
            {k: copy.deepcopy(v, memo) for k, v in self._config().items()}, self.params
        )

    def __repr__(self) -> str:
        count = sum(a.size for a in self.params.values())
        config = ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        )
        return f"{type(self).__name__}({config}), {count} parameters on {self._place}"


class Parameterless(Layer):
    """A layer without parameters.

    Its input says in which library and dtype it computes.
    """

    tokenwise = True

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _admit(self, U: Any) -> Any:
        xp = namespace(U) if backend.is_array(U) else np
        single = backend.is_array(U) and U.dtype == xp.float32
        U = backend.as_real(U, name="U", xp=xp, dtype="float32" if single else "float64")
        self._check(U)
        return U

    def _check(self, U: Any) -> None:
        if U.ndim < 2 or U.size == 0:
            raise InputError(
                f"U has shape {U.shape}; {type(self).__name__} takes (m, n), "
                "one sample a row, with m >= 1"
            )

    def astype(self, dtype: str) -> Self:
        """Return it as it is: it computes in the dtype of its input."""
        check_dtype(dtype)
        return self


def finite_output(Y: Any, on_fail: OnFail) -> Any:
    """Y; if not all of it is finite, an error or a warning, as `on_fail` says.

    Looked at where that is free: a GPU would be waited for, and there it shows in the
    loss, or at the next door.
    """
    xp = namespace(Y)
    if on_fail == "ignore" or not backend.looks_are_free(xp) or backend.all_finite(xp, Y):
        return Y
    count = np.sum(~np.isfinite(backend.to_numpy(Y)))
    message = (
        f"Y has {count} entries that are NaN or infinite, and U has none: something on the way "
        f"is too large for {backend.real_dtype(Y)}; rescale the inputs, or project the parameters"
    )
    if on_fail == "raise":
        raise InputError(message)
    warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return Y


def check_dtype(dtype: Any) -> str:
    """Return ``"float32"`` or ``"float64"``, or refuse the dtype.

    ``numpy.float64`` and the like are taken too.
    """
    try:
        name = "None" if dtype is None else str(np.dtype(dtype).name)  # NumPy reads None as float64
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise InputError(
            f"dtype {dtype!r} is not one that pyidl computes in; use 'float32' or 'float64'"
        )
    return name


def check_width(name: str, value: Any) -> int:
    """Return a dimension as an int, or refuse it."""
    if not (is_whole(value) and value >= 1):
        raise InputError(f"{name} is {value!r}; it must be a positive integer")
    return int(value)


def missing_axis(U: Any, ndim: int, width: int, what: str) -> str:
    """For the end of a message: how an input that lacks an axis gets it, if that helps.

    Examples
    --------
    >>> missing_axis(np.ones((7, 3)), 3, 3, "sequence")
    '; for one sequence use U[None, :, :]'
    >>> missing_axis(np.ones((4, 7)), 3, 1, "sequence")
    '; for one number a step use U[:, :, None]'
    """
    if U.ndim != ndim - 1 or U.size == 0 or width not in (1, U.shape[-1]):
        return ""
    if width == U.shape[-1]:
        return f"; for one {what} use U[None{', :' * U.ndim}]"
    return f"; for one number a {'step' if ndim == 3 else what} use U[{':, ' * U.ndim}None]"


def check_widths(layer: Layer, *names: str) -> None:
    """Put these dimensions of a layer, and its dtype, into their normal form."""
    for name in names:
        setattr(layer, name, check_width(name, getattr(layer, name)))
    layer.dtype = check_dtype(layer.dtype)
