"""Training as a picture: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from oneadam.cli.recipe import Epoch

# It tells on the first run of all that it builds its list of fonts.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

_COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#e6a700", "#0b7285")


def draw(path: Path, histories: Mapping[str, Sequence[Epoch]]) -> None:
    """Write a PNG with the curves of one run or several, each under its name.

    Args:
        path: The file to write.
        histories: The epochs of each run, from the first; drawn in one colour per run.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    drawn = zip(range(len(histories), 0, -1), histories.items(), _COLOURS, strict=False)
    wider = 3 if len(histories) <= 4 else 2
    for rank, (name, history), colour in drawn:
        epochs = range(1, len(history) + 1)
        marker = "o" if len(history) == 1 else ""
        # Curves may coincide: the earlier ones are wider, and show at the edges of the later.
        style = {"color": colour, "linewidth": wider * (rank - 1) + 2, "marker": marker}
        averaged = {**style, "linestyle": (0, (4 / rank, 2 / rank)), "alpha": 0.6}
        loss.plot(epochs, [epoch.loss for epoch in history], label=name, **style)
        of_trained, of_averaged = _labels(name, rank, len(histories))
        accuracy.plot(epochs, [epoch.accuracy for epoch in history], label=of_trained, **style)
        accuracy.plot(
            epochs,
            [epoch.averaged_accuracy for epoch in history],
            label=of_averaged,
            **averaged,
        )
        rate.plot(epochs, [epoch.learning_rate for epoch in history], label=name, **style)
    loss.set_yscale("log")
    loss.yaxis.set_major_formatter("{x:g}")
    # The first epochs are far below; what matters happens near the top.
    worst = min(history[-1].accuracy for history in histories.values())
    accuracy.set_ylim(max(0.0, worst - 0.15), 1.005)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes, title in (
        (loss, "Training loss"),
        (accuracy, "Held-out accuracy"),
        (rate, "Learning rate"),
    ):
        _dress(axes, title)
    accuracy.legend(frameon=False, loc="lower right")
    if len(histories) > 1:
        loss.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)


def _labels(name: str, rank: int, runs: int) -> tuple[str, str]:
    """Return what the legend says of a run's two accuracies."""
    if runs <= 2:
        return f"{name}, trained", f"{name}, averaged"
    # Of many, the colours are told beside the losses.
    return ("trained", "averaged") if rank == 1 else ("_", "_")


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel("epoch", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
