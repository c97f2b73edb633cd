"""A small network trained from the first epoch to the last, or from where a run was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from oneadam.cli import digits, picture, progress, report
from oneadam.cli.network import Parameters, initial_parameters
from oneadam.cli.progress import Progress, Tensors
from oneadam.cli.recipe import Epoch, Recipe
from oneadam.cli.training import make_optimizer, train_epoch
from oneadam.numpy import Adam

_PROGRESS = "progress.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_PICTURE = "training.png"


class Refused(Exception):
    """What was asked for cannot be done; the message says why, and what to do instead."""


class _Run(NamedTuple):
    recipe: Recipe
    digits: digits.Digits
    parameters: Parameters
    optimizer: Adam
    history: list[Epoch]


def demo(
    console: Console, folder: Path, *, epochs: int | None, seed: int | None, resume: bool
) -> None:
    """Train, show how it goes, and leave weights, state and a picture in `folder`.

    Args:
        console: Where to show it.
        folder: Made where it does not exist.
        epochs: At least 1; None is the run's own number, or the default.
        seed: At least 0; None is the run's own seed, or the default.
        resume: Continue the run in `folder`, if one was begun there.

    Raises:
        Refused: `folder` cannot be written, or what is in it cannot be continued as asked.
    """
    asked = {"epochs": epochs, "seed": seed}
    chosen = {name: value for name, value in asked.items() if value is not None}
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if resume and (folder / _PROGRESS).exists():
        run = _continued(folder, chosen)
        report.say(console, _where_it_stands(run, folder))
    else:
        if resume:
            report.say(console, f"No run was begun in {folder}, so this one starts at epoch 1.")
        run = _begun(Recipe(**chosen))
        # From here on --resume finds this run, not one that was in the folder before.
        _save(run, folder)
    _train(console, run, folder)
    _finish(console, run, folder)


def _begun(recipe: Recipe) -> _Run:
    data = digits.load()
    parameters = initial_parameters(recipe.seed)
    optimizer = make_optimizer(recipe, data)
    optimizer.build(parameters)
    return _Run(recipe, data, parameters, optimizer, history=[])


def _continued(folder: Path, chosen: dict[str, int]) -> _Run:
    try:
        saved = progress.read(folder / _PROGRESS)
        # A newer version of the demo may have another recipe; the rest of it must be the same.
        expected = Recipe(epochs=saved.recipe.epochs, seed=saved.recipe.seed)
        if saved.recipe != expected:
            raise ValueError(f"its recipe is {saved.recipe}, not {expected}")
        run = _begun(saved.recipe)
        progress.check_alike(saved.tensors, _tensors(run))
        run.optimizer.load_state_dict(_without_prefix(saved.tensors, "optimizer/"))
    except (ValueError, OSError) as error:
        raise Refused(
            f"{folder / _PROGRESS} cannot be continued: {error}. "
            "Start a new run without --resume, or choose another folder with --out."
        ) from error
    for option, value in chosen.items():
        own = getattr(saved.recipe, option)
        if value != own:
            raise Refused(
                f"--{option} {value} differs from the run in {folder}, which has "
                f"--{option} {own}. Leave the option out to continue that "
                "run, or start a new one without --resume."
            )
    for name, weights in _weights(run.parameters).items():
        weights[...] = saved.tensors[f"weights/{name}"]
    run.history.extend(saved.history)
    return run


def _train(console: Console, run: _Run, folder: Path) -> None:
    done, epochs = len(run.history), run.recipe.epochs
    if done == epochs:
        return
    with report.live(console, epochs, done) as show:
        for number in range(done + 1, epochs + 1):
            epoch, examples_per_second = train_epoch(
                run.parameters, run.optimizer, run.recipe, run.digits, number
            )
            run.history.append(epoch)
            _save(run, folder)
            show(number, epoch, examples_per_second)


def _finish(console: Console, run: _Run, folder: Path) -> None:
    with _writing_to(folder):
        run.optimizer.save(folder / _OPTIMIZER)
        picture.draw(folder / _PICTURE, {"NumPy": run.history})
    report.table(console, run.history[-1], len(run.digits.held_out.labels))
    report.say(console, f"Wrote {_PROGRESS}, {_OPTIMIZER} and {_PICTURE} to {folder}.")


def _where_it_stands(run: _Run, folder: Path) -> str:
    done, epochs = len(run.history), run.recipe.epochs
    if done == epochs:
        return f"The run in {folder} has finished all its {epochs} epochs."
    return f"Continuing the run in {folder} after epoch {done} of {epochs}."


def _save(run: _Run, folder: Path) -> None:
    with _writing_to(folder):
        progress.write(folder / _PROGRESS, Progress(run.recipe, run.history, _tensors(run)))


def _tensors(run: _Run) -> Tensors:
    weights = _weights(run.parameters).items()
    state = run.optimizer.state_dict().items()
    return {
        **{f"weights/{name}": value for name, value in weights},
        **{f"optimizer/{name}": value for name, value in state},
    }


def _weights(parameters: Parameters) -> Tensors:
    return {
        f"{layer}/{name}": value
        for layer, arrays in parameters.items()
        for name, value in arrays.items()
    }


def _without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"nothing can be written to {folder}: {error}. Choose another folder with --out."
        ) from error
