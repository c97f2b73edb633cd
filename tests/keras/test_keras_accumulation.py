"""A call that accumulates only adds: it neither reads nor writes what an update changes."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import keras
import numpy as np
import processes
import pytest
from keras import ops

from oneadam.keras import Adam

BACKEND = keras.backend.backend()
SHAPES = [(37, 5), (41,)]
"""Such that no other array has them."""
CONFIG: dict[str, Any] = {
    "amsgrad": True,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_overwrite_frequency": 1,
    "gradient_accumulation_steps": 3,
}


def built() -> tuple[Any, list[Any]]:
    variables = [
        keras.Variable(np.ones(shape, np.float32), name=f"w{place}")
        for place, shape in enumerate(SHAPES)
    ]
    optimizer = Adam(0.1, name="adam", **CONFIG)
    optimizer.build(variables)
    return optimizer, variables


def gradients() -> list[Any]:
    return [ops.ones(shape) for shape in SHAPES]


def of_call(jaxpr: Any) -> Iterator[Any]:
    """Yield the operations of JAX that a call takes which accumulates."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if equation.primitive.name == "cond":
            yield from of_call(equation.params["branches"][0].jaxpr)
        elif inner is not None:
            yield from of_call(getattr(inner, "jaxpr", inner))
        else:
            yield equation


def parts_of_call(compiled: str) -> str:
    """Return the parts of a program of XLA that a call runs through which accumulates."""
    parts = dict(re.findall(r"^(?:ENTRY )?(%\S+) [^\n]*\{\n(.*?)^\}", compiled, re.DOTALL | re.M))
    (entry,) = re.findall(r"^ENTRY (%\S+)", compiled, re.M)
    branches = re.findall(r"branch_computations=\{(%[\w.]+)", parts[entry])
    assert branches
    return "".join(parts[name] for name in (entry, *branches))


def conditions(jaxpr: Any) -> Iterator[Any]:
    """Yield the outermost conditions in operations of JAX."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if equation.primitive.name == "cond":
            yield equation
        elif inner is not None:
            yield from conditions(getattr(inner, "jaxpr", inner))


def traced_in_jax() -> Any:
    import jax

    optimizer, variables = built()
    state = [variable.value for variable in optimizer.variables]
    values = [variable.value for variable in variables]

    def step(kept: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(kept[1], grads, kept[0])

    # As in `fit`, which does not need what was before.
    return jax.jit(step, donate_argnums=0).trace((values, state), gradients())


@pytest.mark.skipif(BACKEND != "jax", reason="of what JAX compiles")
def test_jax_only_adds() -> None:
    traced = traced_in_jax()
    parts = parts_of_call(traced.lower().compile().as_text())
    for shape in SHAPES:
        found = Counter(
            equation.primitive.name
            for equation in of_call(traced.jaxpr.jaxpr)
            if any(output.aval.shape == shape for output in equation.outvars)
        )
        assert found == {"add": 1}
        size = ",".join(map(str, shape))
        assert len(re.findall(rf"f32\[{size}\]\S* fusion\(", parts)) == 1
        assert not re.search(rf"f32\[{size}\]\S* copy\(", parts)


@pytest.mark.skipif(BACKEND != "jax", reason="of what JAX compiles")
def test_jax_hands_numbers_over_in_vectors() -> None:
    first, *_ = conditions(traced_in_jax().jaxpr.jaxpr)
    _condition, *handed = first.invars
    # The variables that hold one number: calls, updates and the learning rate.
    assert sum(operand.aval.shape == () for operand in handed) <= 3


def shapes_of(attributes: Any) -> list[tuple[int, ...]]:
    found = attributes["_output_shapes"].list.shape
    return [tuple(size.size for size in shape.dim) for shape in found]


def of_graph(graph: Any) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yield the operations of TensorFlow that a call takes which accumulates.

    Each with the shapes that it is given and those that it makes, () for what is no tensor.
    """
    functions = {one.signature.name: one for one in graph.library.function}

    def of_nodes(nodes: Any, made: dict[str, list[Any]]) -> Iterator[Any]:
        made |= {node.name: shapes_of(node.attr) for node in nodes}
        for node in nodes:
            called = node.attr["else_branch" if node.op in ("If", "StatelessIf") else "f"].func.name
            if called:
                function = functions[called]
                arguments = {
                    argument.name: shapes_of(function.arg_attr[place].attr)
                    for place, argument in enumerate(function.signature.input_arg)
                }
                yield from of_nodes(function.node_def, arguments)
            else:
                given = [made[name.partition(":")[0]] for name in node.input if name[0] != "^"]
                yield node.op, [*chain.from_iterable(given)], made[node.name]

    return of_nodes(graph.node, {})


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's graphs")
def test_tensorflow_only_adds() -> None:
    import tensorflow as tf

    optimizer, variables = built()
    step = tf.function(lambda *grads: optimizer.apply(grads, variables), autograph=False)
    graph = step.get_concrete_function(*gradients()).graph.as_graph_def(add_shapes=True)
    for shape in SHAPES:
        found = Counter(op for op, given, made in of_graph(graph) if shape in (*given, *made))
        assert found == {"Placeholder": 1, "AssignAddVariableOp": 1}


def guarded(variables: list[Any]) -> Callable[[int], None]:
    """Put PyTorch's variables into pages of their own; return what sets the rights to these."""
    import torch

    pages = []
    for variable in variables:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        held = variable.value.detach()
        tensor = torch.frombuffer(page, dtype=held.dtype, count=held.numel()).reshape(held.shape)
        variable._value = torch.nn.Parameter(tensor.copy_(held), requires_grad=False)
        pages.append(tensor.data_ptr())

    def protect(rights: int) -> None:
        for page in pages:
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, rights) == 0

    return protect


def end_of_a_child(act: Callable[[], None]) -> int:
    """Return the exit code of a forked process that does something, or minus its signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        signal.alarm(processes.LIMIT)
        faulthandler.disable()
        act()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch's memory")
def test_pytorch_only_adds() -> None:
    optimizer, variables = built()
    state = [optimizer._momentums, optimizer._velocities, optimizer._velocity_hats,
             optimizer._model_variables_moving_average]  # fmt: skip
    protect = guarded([*variables, *chain(*state)])

    def untouched() -> None:
        protect(0)
        optimizer.apply(gradients(), variables)

    optimizer.apply(gradients(), variables)
    assert end_of_a_child(untouched) == 0
    optimizer.apply(gradients(), variables)
    assert -end_of_a_child(untouched) in (signal.SIGSEGV, signal.SIGBUS)
