"""The callback for the Trainer of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME

from oneadam._warnings import warn
from oneadam.torch import LossScaleOptimizer
from oneadam.torch.integrations._optimizers import (
    Averages,
    Optimizer,
    finish,
    ours,
    ours_or_complaint,
)

__all__ = ["AdamCallback"]


class AdamCallback(TrainerCallback):
    """Evaluate with averages, end training with them, flush the last window, and log `metrics()`.

    - In `evaluate` and `predict` during training the parameters hold their averages
      (`use_ema=True`), and their trained values again afterwards. The Trainer tells its callbacks
      of no exception: after one in an evaluation call `restore()`, unless you train again.
    - At the end of training an incomplete accumulation window is closed; then the parameters
      become their averages. With `load_best_model_at_end=True` they become the averages of the
      best checkpoint, by which it was chosen.
    - Checkpoints that are saved during training hold the trained values, so that
      `train(resume_from_checkpoint=...)` goes on as if it had never stopped.
    - `metrics()` are added to what the Trainer logs with the training loss: in
      `state.log_history`, on the console, and for callbacks that come after this one. Those of
      `report_to` come before: set `report_to="none"` and pass such a callback after this one.

    The Trainer clips gradients itself unless `max_grad_norm=0`; clipping of the optimizer comes
    on top. It does not call `scale_loss`: in float16 train with `fp16=True`, not with
    `LossScaleOptimizer`, unless your `compute_loss` does so.

    Args:
        prefix: str, what the names of the metrics begin with; None logs nothing.

    Raises:
        TypeError: `prefix` is no str.
        ValueError: when training starts, the optimizer is not of `oneadam.torch`, or is a
            `LossScaleOptimizer` and the Trainer clips.

    Example:
        >>> from oneadam.torch.integrations.transformers import AdamCallback
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     model,
        ...     arguments,
        ...     train_dataset=data,
        ...     optimizers=(Adam(model.parameters(), use_ema=True), None),
        ...     callbacks=[AdamCallback()],
        ... )
    """

    def __init__(self, prefix: str | None = "oneadam/") -> None:
        if not isinstance(prefix, str | None):
            raise TypeError(f"prefix must be a str, or None to log nothing; received {prefix!r}")
        self.prefix = prefix
        self._averages = Averages()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask the optimizer to be told when evaluation and training begin."""
        (optimizer,) = ours_or_complaint([kwargs["optimizer"]], type(self).__name__)
        if isinstance(optimizer, LossScaleOptimizer) and args.max_grad_norm > 0:
            raise ValueError(
                "max_grad_norm must be 0 with a LossScaleOptimizer, whose gradients are clipped"
                f" before they are unscaled, received {args.max_grad_norm!r}; set clipping in the"
                " optimizer"
            )
        self._averages.leave()
        _tell(optimizer, self._averages)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Give the parameters their trained values back."""
        self._averages.leave()

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any,
        **kwargs: Any,
    ) -> None:
        """Give the parameters their trained values back."""
        self._averages.leave()

    def restore(self) -> None:
        """Give the parameters their trained values back, after an exception in an evaluation."""
        self._averages.leave()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to those that are logged with the training loss."""
        logs = kwargs["logs"]
        if self.prefix is None or "loss" not in logs:
            return
        for optimizer in ours([kwargs["optimizer"]]):
            metrics = {f"{self.prefix}{key}": v for key, v in optimizer.metrics().items()}
            logs.update(metrics)
            state.log_history[-1].update(metrics)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close an incomplete window and set the parameters to their averages."""
        for optimizer in ours([kwargs["optimizer"]]):
            _tell_no_more(optimizer)
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                _load_averages(optimizer, Path(state.best_model_checkpoint) / OPTIMIZER_NAME)
            else:
                finish([optimizer])


def _tell(optimizer: Optimizer, averages: Averages) -> None:
    """Hear from the optimizer what no event of the Trainer says."""
    _tell_no_more(optimizer)
    load = optimizer.load_state_dict

    def load_state_dict(state_dict: dict[str, Any]) -> None:
        if averages.entered:
            _leave_but_keep_loaded(optimizer, averages)
        load(state_dict)

    # The Trainer calls the first two, of optimizers that have them, at the beginning of an
    # evaluation and of every training step; the last where training is resumed.
    vars(optimizer).update(
        eval=lambda: averages.enter([optimizer]),
        train=averages.leave,
        load_state_dict=load_state_dict,
    )


def _tell_no_more(optimizer: Optimizer) -> None:
    for name in ("eval", "train", "load_state_dict"):
        vars(optimizer).pop(name, None)


def _leave_but_keep_loaded(optimizer: Optimizer, averages: Averages) -> None:
    """Leave an evaluation that raised, after which values of a checkpoint were loaded."""
    loaded = {}
    for parameter in _parameters(optimizer):
        average = optimizer.state.get(parameter, {}).get("average")
        if average is not None and not torch.equal(parameter, average.to(parameter.dtype)):
            loaded[parameter] = parameter.detach().clone()
    averages.leave()
    with torch.no_grad():
        for parameter, value in loaded.items():
            parameter.copy_(value)


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _load_averages(optimizer: Optimizer, file: Path) -> None:
    """Set the parameters to the averages in a checkpoint, whose trained values they hold."""
    if not file.is_file():
        warn(
            f"the best checkpoint has no {file.name}, and so no averages: the parameters keep the"
            " trained values of it. Save with save_only_model=False"
        )
        return
    saved = torch.load(file, map_location="cpu", weights_only=True)
    numbers = (number for group in saved["param_groups"] for number in group["params"])
    with torch.no_grad():
        for number, parameter in zip(numbers, _parameters(optimizer), strict=True):
            entry = saved["state"].get(number, {})
            if entry.get("averaged", False):
                parameter.copy_(entry["average"])
