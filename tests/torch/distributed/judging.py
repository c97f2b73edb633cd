"""Holds what a world has recorded to the definition, and to the same optimizer in one process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from conformance import ENTRIES, Reach, spacings_off, state_of
from oracle import Oracle, flat
from recording import Recorder
from subject import Adam
from tolerances import allowed, unit


class DisagreementError(AssertionError):
    """A world's result is not what it must be."""


def array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's numbers as NumPy has them."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def agreed(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what all ranks say; they must say the same to the last bit."""
    for rank, result in enumerate(results[1:], start=1):
        for key in ("values", "state", "steps", "counters", "metrics"):
            here, there = described(results[0].get(key)), described(result.get(key))
            if here != there:
                parts = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
                raise DisagreementError(f"ranks 0 and {rank} disagree on the {key} of {parts}")
    return results[0]


def described(thing: Any, path: str = "") -> dict[str, Any]:
    """Nested tensors and numbers as one flat dictionary of what can be compared."""
    if isinstance(thing, Mapping):
        return {
            k: v for key, part in thing.items() for k, v in described(part, f"{path}/{key}").items()
        }
    if isinstance(thing, torch.Tensor):
        return {path: (thing.dtype, tuple(thing.shape), array(thing).tobytes())}
    return {path: thing}


def judge(result: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Hold a record to the definition, and to the same optimizer in one process.

    Values, all state, counters, and where the state lies.

    Args:
        result: what `Recorder.result` returned.
        config: the optimizer's arguments.

    Raises:
        DisagreementError: naming tensor, element and distance.
    """
    if result["misplaced"]:
        raise DisagreementError(f"not laid out as its parameter: {result['misplaced']}")
    oracle, reach = defined(result, config)
    _judge_counters(result, oracle)
    single = alone(result, config)
    for name in result["values"]:
        wanted = {"value": oracle.values[name], **state_of(oracle, name)}
        _judge_state_names(name, result["state"][name], wanted)
        for what, numbers in wanted.items():
            if numbers is None:
                continue
            answer = tensor_of(result, name, what)
            title = f"{what} of {name!r} beside the definition"
            _judge_tensor(title, what, answer, numbers, reach, name)
            numbers = flat(tensor_of(single, name, what))
            title = f"{what} of {name!r} beside one process"
            _judge_tensor(title, what, answer, numbers, reach, name)


def defined(result: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Oracle, Reach]:
    """What the definition makes of the recorded gradients."""
    oracle = Oracle({name: array(value) for name, value in result["initial"].items()}, **config)
    reach = Reach(oracle)
    for gradients in result["gradients"]:
        if isinstance(gradients, str):
            _act(oracle, reach, gradients)
            continue
        given = {name: None if g is None else array(g) for name, g in gradients.items()}
        updates = oracle.updates
        reach.tell_gradients(given, float(config.get("loss_scale_factor") or 1.0))
        oracle.call(given)
        if oracle.updates > updates:
            reach.tell_update((oracle.beta_1, oracle.beta_2), oracle.window)
        reach.tell_state()
    return oracle, reach


def _act(oracle: Oracle, reach: Reach, what: str) -> None:
    fill, updates = oracle.fill, oracle.updates
    {"flush": oracle.flush, "finalize": oracle.finalize}[what]()
    if oracle.updates > updates:
        reach.tell_update((oracle.beta_1, oracle.beta_2), fill)
    reach.tell_state()


def tensor_of(result: Mapping[str, Any], name: str, what: str) -> np.ndarray:
    """The value of a parameter, or an entry of its state."""
    return array(result["values"][name] if what == "value" else result["state"][name][what])


def _judge_counters(result: Mapping[str, Any], oracle: Oracle) -> None:
    wanted = {
        "calls": oracle.calls,
        "updates": oracle.updates,
        "accumulated_calls": oracle.fill,
        "skipped_calls": oracle.skipped_calls,
    }
    if result["counters"] != wanted:
        raise DisagreementError(f"counters are {result['counters']}, must be {wanted}")
    if result["steps"] != {name: float(count) for name, count in oracle.update_counts.items()}:
        raise DisagreementError(f"steps are {result['steps']}, must be {oracle.update_counts}")


def _judge_state_names(name: str, state: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    needed = {what for what, numbers in wanted.items() if numbers is not None} - {"value"}
    if not needed <= state.keys() <= set(wanted):
        raise DisagreementError(f"{name!r} has the state {sorted(state)}, must be {sorted(needed)}")


def _judge_tensor(
    title: str, what: str, answer: np.ndarray, numbers: list[float], reach: Reach, name: str
) -> None:
    oracle = reach.oracle
    dtype = oracle.dtypes[name]
    kept_in = oracle.compute_dtype(name) if what in ENTRIES else dtype
    if answer.dtype.name != kept_in:
        raise DisagreementError(f"{title} is kept in {answer.dtype.name}, must be in {kept_in}")
    clipped = any((oracle.clipnorm, oracle.global_clipnorm))
    preparation = (oracle.loss_scale_factor is not None) + 2 * clipped
    preparation += oracle.window if oracle.window > 1 else 0
    limit = allowed(what, dtype, oracle.updates, preparation)
    kind = unit(what, dtype)
    off = spacings_off(answer, numbers, reach.largest[name, what], kind)
    if off.size and not off.max() <= limit:
        i = int(off.argmax())
        raise DisagreementError(
            f"{title}, element {i}: {answer.ravel()[i]!r}, must be {numbers[i]!r}; {off[i]:.3g}"
            f" {kind} spacings off, {limit:.3g} allowed after {oracle.updates} updates"
        )


def alone(result: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The same gradients in one process; returns what the recorder there wrote down."""
    named = {n: torch.nn.Parameter(v.clone()) for n, v in result["initial"].items()}
    recorder = Recorder(named.items(), Adam(named.items(), **config))
    for gradients in result["gradients"]:
        if isinstance(gradients, str):
            {"flush": recorder.flush, "finalize": recorder.finalize}[gradients]()
            continue
        for name, gradient in gradients.items():
            named[name].grad = None if gradient is None else gradient.clone()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient in this call", UserWarning)
            recorder.step()
    return recorder.result()
