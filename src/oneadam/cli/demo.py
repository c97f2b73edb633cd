"""A small network trained from the first epoch to the last, or from where a run was cut off."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from oneadam.cli import digits, frameworks, picture, progress, report
from oneadam.cli.recipe import Epoch, Recipe
from oneadam.cli.training import Training, train_epoch

_PROGRESS = "progress.safetensors"
_PICTURE = "training.png"


class Refused(Exception):
    """What was asked for cannot be done; the message says why, and what to do instead."""


class _Demo(NamedTuple):
    recipe: Recipe
    digits: digits.Digits
    runs: dict[str, _Run]


class _Run(NamedTuple):
    training: Training
    history: list[Epoch]


def demo(
    console: Console,
    folder: Path,
    *,
    epochs: int | None,
    seed: int | None,
    resume: bool,
    chosen: Iterable[str] = (),
) -> None:
    """Train, show how it goes, and leave weights, state and a picture in `folder`.

    Args:
        console: Where to show it.
        folder: Made where it does not exist.
        epochs: At least 1; None is the run's own number, or the default.
        seed: At least 0; None is the run's own seed, or the default.
        resume: Continue the run in `folder`, if one was begun there.
        chosen: Names of frameworks to train with; the first is always among them.

    Raises:
        Refused: `folder` cannot be written, what is in it cannot be continued as asked, or a
            framework is not installed.
    """
    asked = {"epochs": epochs, "seed": seed}
    settings = {name: value for name, value in asked.items() if value is not None}
    names = frameworks.in_order(chosen)
    _check_installed(names)
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if resume and (folder / _PROGRESS).exists():
        begun = _continued(folder, settings, names)
        report.say(console, _where_it_stands(begun, folder))
    else:
        if resume:
            report.say(console, f"No run was begun in {folder}, so this one starts at epoch 1.")
        begun = _begun(Recipe(**settings), names)
        # From here on --resume finds this run, not one that was in the folder before.
        _save(begun, folder)
    for name in begun.runs:
        _train(console, begun, name, folder)
    _finish(console, begun, folder)


def _check_installed(names: Iterable[str]) -> None:
    for name in names:
        needed = frameworks.KNOWN[name]
        missing = [package for package in needed.packages if find_spec(package) is None]
        if missing:
            raise Refused(
                f"--framework {name} needs {', '.join(missing)}, which the extra"
                f" '{needed.extra}' brings: python -m pip install 'oneadam[cli,{needed.extra}]'"
            )


def _begun(recipe: Recipe, names: Iterable[str]) -> _Demo:
    data = digits.load()
    runs = {}
    for name in names:
        module = importlib.import_module(frameworks.KNOWN[name].module)
        runs[name] = _Run(module.Training(recipe, data), history=[])
    return _Demo(recipe, data, runs)


def _continued(folder: Path, settings: dict[str, int], names: Iterable[str]) -> _Demo:
    try:
        saved = progress.read(folder / _PROGRESS)
        # A newer version of the demo may have another recipe; the rest of it must be the same.
        expected = Recipe(epochs=saved.recipe.epochs, seed=saved.recipe.seed)
        if saved.recipe != expected:
            raise ValueError(f"its recipe is {saved.recipe}, not {expected}")
        every = frameworks.in_order([*saved.runs, *names])
        _check_installed(every)
        begun = _begun(saved.recipe, every)
        for name, run in saved.runs.items():
            begun.runs[name].training.restore(run.tensors)
            begun.runs[name].history.extend(run.history)
    except (TypeError, ValueError, OSError) as error:
        raise Refused(
            f"{folder / _PROGRESS} cannot be continued: {error}. "
            "Start a new run without --resume, or choose another folder with --out."
        ) from error
    for option, value in settings.items():
        own = getattr(saved.recipe, option)
        if value != own:
            raise Refused(
                f"--{option} {value} differs from the run in {folder}, which has "
                f"--{option} {own}. Leave the option out to continue that "
                "run, or start a new one without --resume."
            )
    return begun


def _train(console: Console, begun: _Demo, name: str, folder: Path) -> None:
    training, history = begun.runs[name]
    done, epochs = len(history), begun.recipe.epochs
    if done == epochs:
        return
    with report.live(console, _title(begun, name), epochs, done) as show:
        for number in range(done + 1, epochs + 1):
            epoch, examples_per_second = train_epoch(training, begun.recipe, begun.digits, number)
            history.append(epoch)
            _save(begun, folder)
            show(number, epoch, examples_per_second)


def _finish(console: Console, begun: _Demo, folder: Path) -> None:
    files = {name: frameworks.KNOWN[name].file for name in begun.runs}
    with _writing_to(folder):
        for name, file in files.items():
            begun.runs[name].training.optimizer.save(folder / file)
        titled = {frameworks.KNOWN[name].title: run.history for name, run in begun.runs.items()}
        picture.draw(folder / _PICTURE, titled)
    outcomes = {_title(begun, name): run.history[-1] for name, run in begun.runs.items()}
    report.table(console, outcomes, len(begun.digits.held_out.labels))
    first, *others = titled
    for other in others:
        report.say(console, _how_close(first, titled[first], other, titled[other]))
    written = ", ".join([_PROGRESS, *files.values()])
    report.say(console, f"Wrote {written} and {_PICTURE} to {folder}.")


def _title(begun: _Demo, name: str) -> str:
    """Return what to call a run: nothing where there is no other."""
    return frameworks.KNOWN[name].title if len(begun.runs) > 1 else ""


def _how_close(first: str, history: list[Epoch], other: str, others: list[Epoch]) -> str:
    largest = max(
        abs(theirs.loss - ours.loss) / ours.loss
        for ours, theirs in zip(history, others, strict=True)
    )
    return (
        f"The losses of {first} and {other} differ by at most {largest:.1e} in any epoch, relative"
        " to the loss."
    )


def _where_it_stands(begun: _Demo, folder: Path) -> str:
    done = [len(run.history) for run in begun.runs.values()]
    epochs = begun.recipe.epochs
    if set(done) == {epochs}:
        return f"The run in {folder} has finished all its {epochs} epochs."
    named = [
        f"{number} of {epochs} {_title(begun, name)}".rstrip()
        for name, number in zip(begun.runs, done, strict=True)
    ]
    return f"Continuing the run in {folder} after epoch {', '.join(named)}."


def _save(begun: _Demo, folder: Path) -> None:
    runs = {
        name: progress.Run(run.history, run.training.tensors()) for name, run in begun.runs.items()
    }
    with _writing_to(folder):
        progress.write(folder / _PROGRESS, progress.Progress(begun.recipe, runs))


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"nothing can be written to {folder}: {error}. Choose another folder with --out."
        ) from error
