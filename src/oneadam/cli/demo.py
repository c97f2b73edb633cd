"""A small network trained from the first epoch to the last, or from where a run was cut off."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from oneadam.cli import comparison, digits, frameworks, picture, progress, report
from oneadam.cli.progress import Tensors
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
    backend: str
    """What Keras runs on in this process; empty where it does not run."""


@dataclass
class _Run:
    """A framework's run: what was kept of it and, from its turn on, what trains."""

    history: list[Epoch] = field(default_factory=list)
    kept: Tensors = field(default_factory=dict)
    training: Training | None = None

    @property
    def now(self) -> progress.Run:
        """What is to be kept of it."""
        return progress.Run(self.history, self.training.tensors() if self.training else self.kept)


def demo(
    console: Console,
    folder: Path,
    *,
    epochs: int | None,
    seed: int | None,
    resume: bool,
    chosen: Collection[str] = (),
    backend: str | None = None,
) -> None:
    """Train, show how it goes, and leave weights, state and a picture in `folder`.

    Args:
        console: Where to show it.
        folder: Made where it does not exist.
        epochs: At least 1; None is the run's own number, or the default.
        seed: At least 0; None is the run's own seed, or the default.
        resume: Continue the run in `folder`, if one was begun there.
        chosen: Names of frameworks to train with; the first is always among them.
        backend: What Keras is to run on, if it is among them; None is what it is configured for.

    Raises:
        Refused: `folder` cannot be written, what is in it cannot be continued as asked, or a
            framework is not installed.
    """
    asked = {"epochs": epochs, "seed": seed}
    settings = {name: value for name, value in asked.items() if value is not None}
    saved = _read(folder) if resume and (folder / _PROGRESS).exists() else None
    keras = _keras_backend(folder, saved, chosen, backend)
    _check_keras(keras)
    names = [name for name in chosen if name != frameworks.KERAS]
    if keras:
        names.append(frameworks.on(keras))
    names = frameworks.in_order([*(saved.runs if saved else ()), *names])
    _check_installed(name for name in names if frameworks.KNOWN[name].backend in ("", keras))
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    runs = {name: _Run() for name in names}
    if saved is not None:
        _check_settings(folder, saved.recipe, settings)
        for name, run in saved.runs.items():
            runs[name] = _Run(run.history, run.tensors)
        begun = _Demo(saved.recipe, digits.load(), runs, keras)
        report.say(console, _where_it_stands(begun, folder))
    else:
        if resume:
            report.say(console, f"No run was begun in {folder}, so this one starts at epoch 1.")
        begun = _Demo(Recipe(**settings), digits.load(), runs, keras)
        # From here on --resume finds this run, not one that was in the folder before.
        _save(begun, folder)
    for name in begun.runs:
        _train(console, begun, name, folder)
    _finish(console, begun, folder)


def _read(folder: Path) -> progress.Progress:
    with _continuing(folder):
        saved = progress.read(folder / _PROGRESS)
        # A newer version of the demo may have another recipe; the rest of it must be the same.
        expected = Recipe(epochs=saved.recipe.epochs, seed=saved.recipe.seed)
        if saved.recipe != expected:
            raise ValueError(f"its recipe is {saved.recipe}, not {expected}")
        frameworks.in_order(saved.runs)
    return saved


def _keras_backend(
    folder: Path,
    saved: progress.Progress | None,
    chosen: Collection[str],
    backend: str | None,
) -> str:
    """Return what Keras is to run on in this process; it is one for the whole process."""
    unfinished = [] if saved is None else _unfinished_backends(saved)
    if frameworks.KERAS not in chosen:
        return unfinished[0] if unfinished else ""
    if backend is None and not unfinished:
        backend = frameworks.configured_backend(_is_installed)
        if backend not in frameworks.BACKENDS:
            raise Refused(
                f"KERAS_BACKEND must be {' or '.join(frameworks.BACKENDS)}, received {backend}."
                " Choose one of them with --backend."
            )
    if unfinished and backend not in (None, unfinished[0]):
        raise Refused(
            f"--backend {backend} must wait, for a process has one backend of Keras, and the run in"
            f" {folder} has one on {unfinished[0]} that is not finished. Continue that first, with"
            f" --resume --framework keras --backend {unfinished[0]}."
        )
    return backend or unfinished[0]


def _check_keras(backend: str) -> None:
    """Refuse a backend where Keras runs on another one already."""
    running = frameworks.running_backend()
    if backend and running not in ("", backend):
        raise Refused(
            f"Keras must run on {backend} for this, but this process has loaded it with {running}"
            " already, and cannot change that. Use a new process, or set"
            f" KERAS_BACKEND={backend} before Keras is imported."
        )


def _unfinished_backends(saved: progress.Progress) -> list[str]:
    return [
        frameworks.KNOWN[name].backend
        for name, run in saved.runs.items()
        if frameworks.KNOWN[name].backend and len(run.history) < saved.recipe.epochs
    ]


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _check_installed(names: Iterable[str]) -> None:
    for name in names:
        needed = frameworks.KNOWN[name]
        missing = [package for package in needed.packages if not _is_installed(package)]
        if missing:
            raise Refused(
                f"{_options(name)} needs {', '.join(missing)}: python -m pip install"
                f" {needed.install}"
            )


def _options(name: str) -> str:
    """Return what chooses a run on the command line."""
    backend = frameworks.KNOWN[name].backend
    if not backend:
        return f"--framework {name}"
    return f"--framework {frameworks.KERAS} --backend {backend}"


def _check_settings(folder: Path, recipe: Recipe, settings: Mapping[str, int]) -> None:
    for option, value in settings.items():
        own = getattr(recipe, option)
        if value != own:
            raise Refused(
                f"--{option} {value} differs from the run in {folder}, which has "
                f"--{option} {own}. Leave the option out to continue that "
                "run, or start a new one without --resume."
            )


def _made(begun: _Demo, name: str, folder: Path) -> Training:
    """Return what trains with a framework, which is loaded now, where the run stands."""
    if frameworks.KNOWN[name].backend:
        os.environ["KERAS_BACKEND"] = begun.backend
        # It tells of the processor and of GPUs that it does not find.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    module = importlib.import_module(frameworks.KNOWN[name].module)
    training: Training = module.Training(begun.recipe, begun.digits)
    run = begun.runs[name]
    if run.kept or run.history:
        with _continuing(folder):
            training.restore(run.kept)
    return training


def _train(console: Console, begun: _Demo, name: str, folder: Path) -> None:
    if frameworks.KNOWN[name].backend not in ("", begun.backend):
        return  # finished in another process, as it must be
    # Only now, for TensorFlow changes how a process handles subnormal numbers.
    run = begun.runs[name]
    run.training = training = _made(begun, name, folder)
    done, epochs = len(run.history), begun.recipe.epochs
    if done == epochs:
        _save_optimizer(training, name, folder)
        return
    with report.live(console, _title(begun, name), epochs, done) as show:
        for number in range(done + 1, epochs + 1):
            epoch, examples_per_second = train_epoch(training, begun.recipe, begun.digits, number)
            run.history.append(epoch)
            if number == epochs:
                _save_optimizer(training, name, folder)
            # Last, so that nothing is missing of a run that has all its epochs.
            _save(begun, folder)
            show(number, epoch, examples_per_second)


def _save_optimizer(training: Training, name: str, folder: Path) -> None:
    with _writing_to(folder):
        training.optimizer.save(folder / frameworks.KNOWN[name].file)


def _finish(console: Console, begun: _Demo, folder: Path) -> None:
    titles = {name: frameworks.KNOWN[name].title for name in begun.runs}
    with _writing_to(folder):
        histories = {titles[name]: run.history for name, run in begun.runs.items()}
        picture.draw(folder / _PICTURE, histories)
    outcomes = {_title(begun, name): run.history[-1] for name, run in begun.runs.items()}
    report.table(console, outcomes, len(begun.digits.held_out.labels))
    if len(begun.runs) > 1:
        runs = {titles[name]: run.now for name, run in begun.runs.items()}
        report.differences(console, _differences(runs))
    files = [frameworks.KNOWN[name].file for name, run in begun.runs.items() if run.training]
    report.say(console, f"Wrote {', '.join([_PROGRESS, *files])} and {_PICTURE} to {folder}.")


def _differences(runs: Mapping[str, progress.Run]) -> dict[str, comparison.Differences]:
    """Return how far each run is from the first, and any two from each other."""
    first, *others = runs
    found = {
        f"{first} and {other}": comparison.between(runs[first], runs[other]) for other in others
    }
    if len(others) > 1:
        found["any two of them"] = comparison.among([*runs.values()])
    return found


def _title(begun: _Demo, name: str) -> str:
    """Return what to call a run: nothing where there is no other."""
    return frameworks.KNOWN[name].title if len(begun.runs) > 1 else ""


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
    runs = {name: run.now for name, run in begun.runs.items()}
    with _writing_to(folder):
        progress.write(folder / _PROGRESS, progress.Progress(begun.recipe, runs))


@contextmanager
def _continuing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        raise Refused(
            f"{folder / _PROGRESS} cannot be continued: {error}. "
            "Start a new run without --resume, or choose another folder with --out."
        ) from error


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"nothing can be written to {folder}: {error}. Choose another folder with --out."
        ) from error
