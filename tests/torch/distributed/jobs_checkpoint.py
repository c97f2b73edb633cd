"""Jobs: a run that is saved in the middle of a window, and taken up again elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jobs_sharded import shard
from recording import Recorder
from subject import Adam, LossScaleOptimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from training import Gained, feed, like, line, made

OPTIONS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
    "from rank 0": StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
}


def started(config: dict[str, Any], plain: bool = False) -> tuple[nn.Module, Recorder]:
    """A model, sharded but for one parameter, and its optimizer."""
    model = made(Gained)
    if not plain:
        shard(model.body, line())
    return model, Recorder(model.named_parameters(), Adam(model.named_parameters(), **config))


def train(recorder: Recorder, calls: range) -> None:
    recorder.train(calls, lambda call: feed(recorder.named.items(), call))


def uninterrupted(config: dict[str, Any], calls: int) -> dict[str, Any]:
    _, recorder = started(config)
    train(recorder, range(calls))
    return recorder.result()


def saved(config: dict[str, Any], calls: int, folder: str) -> dict[str, Any]:
    """Train, then save in every way there is."""
    model, recorder = started(config)
    train(recorder, range(calls))
    for way in ("nested", "flat"):
        dcp.save(state_of(model, recorder.optimizer, way), checkpoint_id=f"{folder}/{way}")
    # All ranks have the whole of it, one writes.
    everything = state_of(model, recorder.optimizer, "full")
    recorder.optimizer.save(f"{folder}/portable.safetensors")
    values = recorder.values()
    if dist.get_rank() == 0:
        torch.save(everything, f"{folder}/full.pt")
        torch.save(values, f"{folder}/values.pt")
    dist.barrier()
    return recorder.result()


def state_of(model: nn.Module, optimizer: Any, way: str) -> dict[str, Any]:
    options = OPTIONS[way]
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def resumed(
    config: dict[str, Any], calls: list[int], folder: str, way: str, plain: bool = False
) -> dict[str, Any]:
    """Load into a new model and optimizer, and go on.

    Args:
        config: of the optimizer.
        calls: the first call to take and the one to stop before.
        folder: where `saved` has been.
        way: how the checkpoint is read.
        plain: a model that is not sharded.
    """
    model, recorder = started(config, plain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    LOADERS[way](model, recorder, folder, way)
    loaded = recorder.result()
    train(recorder, range(*calls))
    optimizer = recorder.optimizer
    return {
        **recorder.result(),
        "loaded": {key: loaded[key] for key in ("values", "state", "steps", "counters")},
        "read": (optimizer.calls, optimizer.updates, optimizer.iterations),
    }


def load_sharded(model: nn.Module, recorder: Recorder, folder: str, way: str) -> None:
    state = state_of(model, recorder.optimizer, way)
    dcp.load(state, checkpoint_id=f"{folder}/{way}")
    put(model, recorder.optimizer, state, way)


def load_full(model: nn.Module, recorder: Recorder, folder: str, way: str) -> None:
    state = {"model": {}, "optimizer": {}}
    if way == "full" or dist.get_rank() == 0:
        state = torch.load(Path(folder) / "full.pt", weights_only=False)
    put(model, recorder.optimizer, state, way)


def put(model: nn.Module, optimizer: Any, state: dict[str, Any], way: str) -> None:
    options = OPTIONS[way]
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def load_portable(model: nn.Module, recorder: Recorder, folder: str, way: str) -> None:
    """The portable file has the state; the values come by themselves."""
    values = torch.load(Path(folder) / "values.pt")
    with torch.no_grad():
        for name, parameter in recorder.named.items():
            parameter.copy_(like(values[name], parameter))
    recorder.optimizer.load(f"{folder}/portable.safetensors")


LOADERS: dict[str, Callable[[nn.Module, Recorder, str, str], None]] = {
    "nested": load_sharded,
    "flat": load_sharded,
    "full": load_full,
    "from rank 0": load_full,
    "portable": load_portable,
}


def scaled(config: dict[str, Any], calls: int, folder: str) -> list[dict[str, Any]]:
    """A dynamic loss scale that has moved; what came of it without and with an interruption."""
    answers = []
    for interrupted in (False, True):
        model, recorder, optimizer = scaling(config)
        for call in range(calls):
            if interrupted and call == 4:
                dcp.save(state_of(model, optimizer, "nested"), checkpoint_id=f"{folder}/scaled")
                model, recorder, optimizer = scaling(config)
                state = state_of(model, optimizer, "nested")
                dcp.load(state, checkpoint_id=f"{folder}/scaled")
                put(model, optimizer, state, "nested")
            feed(recorder.named.items(), call)
            if call == 2:
                next(iter(recorder.named.values())).grad *= torch.inf
            optimizer.step()
        answers.append({**recorder.result(), "scale": optimizer.scale})
    return answers


def scaling(config: dict[str, Any]) -> tuple[nn.Module, Recorder, Any]:
    """A loss scale that doubles after four finite calls."""
    model, recorder = started(config)
    return model, recorder, LossScaleOptimizer(recorder.optimizer, 1024.0, 4)


def unwritable(config: dict[str, Any], calls: int, folder: str) -> str:
    """Save to where nothing can be written; the error that this rank sees."""
    _, recorder = started(config)
    train(recorder, range(calls))
    try:
        recorder.optimizer.save(f"{folder}/no/such/folder/file.safetensors")
    except OSError as error:
        return str(error)
    raise AssertionError("it was written")
