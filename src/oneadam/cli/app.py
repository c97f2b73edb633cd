"""The commands, and what they accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from oneadam import __version__
from oneadam.cli import frameworks
from oneadam.cli.recipe import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEFAULT = Recipe()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oneadam {__version__}")
        raise typer.Exit


def _at_least(lowest: int) -> Callable[[int | None], int | None]:
    def check(value: int | None) -> int | None:
        if value is not None and value < lowest:
            raise typer.BadParameter(f"must be at least {lowest}, received {value}")
        return value

    return check


def _known_frameworks(names: Sequence[str] | None) -> Sequence[str] | None:
    try:
        frameworks.check_known(names or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return names


def _known_backend(name: str | None) -> str | None:
    if name is not None and name not in frameworks.BACKENDS:
        raise typer.BadParameter(f"must be {' or '.join(frameworks.BACKENDS)}, received {name}")
    return name


@app.callback()
def oneadam(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Adam, written once and exactly."""


@app.command()
def demo(
    epochs: Annotated[
        int | None,
        typer.Option(
            callback=_at_least(1), help=f"Passes over the data, {_DEFAULT.epochs} if not given."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            callback=_at_least(0),
            help=f"Of weights and data order, {_DEFAULT.seed} if not given.",
        ),
    ] = None,
    framework: Annotated[
        list[str] | None,
        typer.Option(
            callback=_known_frameworks,
            help=f"{' or '.join(frameworks.ON_COMMAND_LINE)}, and may be given several times. "
            "NumPy is always among them, for comparison.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            callback=_known_backend,
            help=f"What Keras runs on, {' or '.join(frameworks.BACKENDS)}. "
            "If not given, what it is configured for.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for weights, optimizer state and picture.")
    ] = Path("oneadam-demo"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in that folder where it stopped.")
    ] = False,
) -> None:
    """Train a small network on handwritten digits, with everything of the optimizer on."""
    if backend is not None and frameworks.KERAS not in (framework or ()):
        raise typer.BadParameter(
            f"says what Keras runs on, received {backend} without --framework keras; give both,"
            " or leave it out",
            param_hint="'--backend'",
        )
    # Training needs a compiler and a framework; --help should not wait for them.
    from oneadam.cli.demo import Refused
    from oneadam.cli.demo import demo as run

    try:
        run(
            Console(),
            out,
            epochs=epochs,
            seed=seed,
            resume=resume,
            chosen=framework or (),
            backend=backend,
        )
    except Refused as error:
        typer.echo(f"oneadam demo: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("\noneadam demo: stopped; the same with --resume continues it.", err=True)
        raise typer.Exit(130) from error
