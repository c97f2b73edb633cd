"""Tables of what was measured, each number beside its target."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.timing import Spread

_PLAIN_WIDTH = 110
_TEXTS = ("what", "who", "step", "loads")


def console() -> Console:
    """Return where to print: as wide as the terminal, or as wide as the tables."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


class Table:
    """Rows of text, and notes below them."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows: list[tuple[str, ...]] = []
        self._notes: list[str] = []

    def add(self, *cells: str) -> None:
        self._rows.append(cells)

    def note(self, text: str) -> None:
        self._notes.append(text)

    def show(self, to: Console, title: str) -> None:
        table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
        for number, column in enumerate(self._columns):
            is_text = number == 0 or column in _TEXTS
            table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        to.print(table)
        for note in self._notes:
            to.print(f"  {note}", style="dim")
        to.print()


def spread(of: Spread, digits: int = 2) -> str:
    """Write a median, and its quartiles in brackets."""
    return f"{of.median:.{digits}f} [{of.low:.{digits}f}, {of.high:.{digits}f}]"


def target(
    measured: float, *, at_least: float | None = None, at_most: float | None = None
) -> tuple[str, str]:
    """Write a target, and whether it is met; nothing where there is none."""
    if at_least is not None:
        return f"≥ {at_least:g}", "yes" if measured >= at_least else "NO"
    if at_most is not None:
        return f"≤ {at_most:g}", "yes" if measured <= at_most else "NO"
    return "", ""
