"""What the terminal shows while a network trains, and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from oneadam.cli.comparison import Differences
from oneadam.cli.recipe import Epoch

# A log that nobody watches needs no more of them.
_LINES = 8

_HEADINGS = ("epoch", "loss", "accuracy", "learning rate", "gradient norm", "examples/s")

Show = Callable[[int, Epoch, float], None]


def say(console: Console, text: str) -> None:
    """Print one line, unwrapped; colours and boxes are for terminals only."""
    if _is_watched(console):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    else:
        typer.echo(text)


@contextmanager
def live(console: Console, title: str, epochs: int, done: int) -> Iterator[Show]:
    """Give a function that shows an epoch: its number, what came of it, and examples per second.

    A terminal gets a display in place; anything else a line for some of the epochs. `done`
    of the epochs were trained before. The title tells this run from others; it may be empty.
    """
    if not _is_watched(console):
        if title:
            typer.echo(title)
        yield _lines(epochs)
        return
    bar = Progress(
        TextColumn(f"oneadam demo {title}".rstrip()),
        BarColumn(None),
        TimeElapsedColumn(),
        console=console,
    )
    task = bar.add_task("", total=epochs, completed=done)
    with Live(bar, console=console) as display:

        def show(number: int, epoch: Epoch, examples_per_second: float) -> None:
            bar.update(task, completed=number)
            row = Table(*_HEADINGS, box=box.SIMPLE_HEAD, expand=True)
            row.add_row(*_cells(number, epochs, epoch, examples_per_second))
            display.update(Group(bar, row))

        yield show


def table(console: Console, outcomes: Mapping[str, Epoch], examples: int) -> None:
    """Print how many of the held-out examples are recognised after the last epoch of each run.

    Args:
        console: Where to.
        outcomes: The last epochs, by titles, which may be empty.
        examples: How many were held out.
    """
    rows = [
        (
            f"{title} {weights}".lstrip(),
            f"{share:.2%}",
            f"{round((1 - share) * examples)} of {examples}",
        )
        for title, epoch in outcomes.items()
        for weights, share in (
            ("trained", epoch.accuracy),
            ("averaged", epoch.averaged_accuracy),
        )
    ]
    _print(console, ("weights", "held-out accuracy", "mistaken"), rows)


def differences(console: Console, found: Mapping[str, Differences]) -> None:
    """Print how far runs are apart.

    Args:
        console: Where to.
        found: The largest differences, by what they are differences of.
    """
    rows = [(of, *(f"{number:.1e}" for number in largest)) for of, largest in found.items()]
    _print(console, ("largest relative difference", *Differences._fields), rows)


def _print(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the second column of which stands out."""
    if not _is_watched(console):
        widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
        for first, *others in (headings, *rows):
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            typer.echo(f"{first:<{widths[0]}}{''.join(cells)}")
        return
    drawn = Table(box=box.ROUNDED)
    drawn.add_column(headings[0])
    for number, heading in enumerate(headings[1:]):
        drawn.add_column(heading, justify="right", style="" if number else "bold green")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def _is_watched(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _lines(epochs: int) -> Show:
    every = -(-epochs // _LINES)
    began = False

    def show(number: int, epoch: Epoch, examples_per_second: float) -> None:
        nonlocal began
        if number % every and number != epochs:
            return
        cells = _cells(number, epochs, epoch, examples_per_second)
        for line in (cells,) if began else (_HEADINGS, cells):
            typer.echo("".join(f"{cell:>15}" for cell in line))
        began = True

    return show


def _cells(number: int, epochs: int, epoch: Epoch, examples_per_second: float) -> tuple[str, ...]:
    return (
        f"{number}/{epochs}",
        f"{epoch.loss:.4f}",
        f"{epoch.accuracy:.2%}",
        f"{epoch.learning_rate:.2e}",
        f"{epoch.gradient_norm:.3f}",
        f"{examples_per_second:,.0f}",
    )
