r"""Sums over chunks of data, and rows solved in blocks, here or on other machines.

The moments of a fit are sums (`pyidl.sim.moments`). They are added in a tree: chunks 0
and 1, chunks 2 and 3, then both sums, and so on. So an error of rounding passes through
log2 of the number of chunks, not through their number, and as many sums are in memory.
The tree is the same wherever it is computed: chunks that are delayed objects of Dask
give a graph, for whatever scheduler their owner has, and the same answer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from pyidl.errors import InputError, expect
from pyidl.sim.moments import Moments
from pyidl.sim.states import States

__all__ = ["accumulate", "map_rows"]


def accumulate(chunks: Iterable[Any]) -> Moments:
    """The moments of all chunks together.

    Parameters
    ----------
    chunks : iterable of States or Moments, or of delayed objects of Dask that give them
        As `iter_states` yields them; consumed one at a time.

    Returns
    -------
    Moments

    Raises
    ------
    InputError
        If there are no chunks, or a chunk is something else, or has other columns.

    Examples
    --------
    >>> import numpy as np
    >>> from pyidl import Linear, Sequential, activations, sim
    >>> net = Sequential(Linear(2, 3, rng=0), activations.relu, Linear(3, 1, rng=1))
    >>> sim.accumulate(sim.iter_states(net, np.ones((10, 2)), batch_size=4)).count
    10
    """
    expect(
        "chunks",
        chunks,
        Iterable,
        "give States or Moments in a list, or as iter_states(network, U) yields them",
    )
    sums: list[tuple[int, Any]] = []  # (level, sum of 2^level chunks), levels falling
    for chunk in chunks:
        level, total = 0, _moments(chunk)
        while sums and sums[-1][0] == level:
            level, total = level + 1, _add(sums.pop()[1], total)
        sums.append((level, total))
    if not sums:
        raise InputError("there are no chunks to accumulate; give at least one sample")
    total = sums.pop()[1]
    while sums:
        total = _add(sums.pop()[1], total)
    result: Moments = total.compute() if _is_delayed(total) else total
    return result


def _is_delayed(chunk: Any) -> bool:
    return hasattr(chunk, "__dask_graph__")


def _moments(chunk: Any) -> Any:
    if _is_delayed(chunk):
        import dask

        return dask.delayed(_moments, pure=False)(chunk)
    if isinstance(chunk, States):
        return chunk.moments()
    if isinstance(chunk, Moments):
        return chunk
    raise InputError(
        f"a chunk is {type(chunk).__name__}; accumulate takes States, as iter_states(network, U) "
        "gives them, or Moments"
    )


def _add(a: Any, b: Any) -> Any:
    if _is_delayed(a) or _is_delayed(b):
        import dask

        return dask.delayed(operator.add, pure=False)(a, b)
    return a + b


def map_rows(
    function: Callable[[Any], Any], blocks: Iterable[Any], scheduler: Any = None
) -> list[Any]:
    """``[function(block) for block in blocks]``: here, or each one a task of Dask.

    Rows of a fit do not depend on one another. What all blocks need belongs into
    `function`, with `functools.partial`: it is sent once.

    Parameters
    ----------
    function : callable
        Without side effects: a task whose worker dies is run again.
    blocks : iterable
        Its arguments.
    scheduler : optional
        None for a loop in this process; otherwise what ``dask.compute(scheduler=...)``
        takes: "threads", "processes", or a ``distributed.Client``.

    Returns
    -------
    list
        In the order of the blocks.

    Raises
    ------
    InputError
        If there is no such scheduler.

    Examples
    --------
    >>> map_rows(abs, [-1, 2])
    [1, 2]
    """
    expect("blocks", blocks, Iterable, "give the arguments of the function, in a list")
    expect("function", function, Callable, "a function of one block is needed")
    if scheduler is None:
        return [function(block) for block in blocks]
    import dask

    try:
        dask.base.get_scheduler(scheduler=scheduler)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"scheduler is {scheduler!r}; use 'threads', 'processes', or a distributed.Client"
        ) from error

    task = dask.delayed(_call, pure=False)
    shared = dask.delayed(function, pure=False, traverse=False)
    return list(dask.compute(*(task(shared, block) for block in blocks), scheduler=scheduler))


def _call(function: Callable[[Any], Any], block: Any) -> Any:
    return function(block)
