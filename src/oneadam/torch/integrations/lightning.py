"""The callback for Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from oneadam.torch import LossScaleOptimizer
from oneadam.torch.integrations._optimizers import (
    Averages,
    Optimizer,
    finish,
    ours,
    ours_or_complaint,
    unwrapped,
)

__all__ = ["AdamCallback", "averaged_state_dict"]

_KEY = "oneadam.torch.integrations.lightning.AdamCallback"
_PARAMETERS = "parameters"


class AdamCallback(Callback):
    """Evaluate with averages, end `fit` with them, flush the last window, and log `metrics()`.

    - During validation in `fit` the parameters hold their averages (`use_ema=True`), and their
      trained values again afterwards, also where validation raises.
    - At the end of training an incomplete accumulation window is closed; then the parameters
      become their averages, before `on_train_end` of the module. After an exception or Ctrl-C
      they keep their trained values.
    - Checkpoints that are saved during training hold the trained values in `"state_dict"`, so
      that `fit(ckpt_path=...)` goes on as if it had never stopped. `validate`, `test` and
      `predict` with `ckpt_path=...` use the averages that are in the checkpoint. Without a
      trainer, `averaged_state_dict` gets them. Checkpoints of the weights alone hold what the
      parameters hold at that time.
    - `metrics()` go to the loggers every `log_every_n_steps`.

    Optimizers that are not of `oneadam.torch` are left alone. `gradient_clip_val` of the trainer
    clips before the optimizer's own clipping does; in mixed precision it needs this callback.

    Args:
        prefix: str, what the names of the metrics begin with; None logs nothing. With several
            optimizers, their number follows: `"oneadam/0/updates"`.

    Raises:
        TypeError: `prefix` is no str.
        ValueError: when fit starts, no optimizer is of `oneadam.torch`, or one is a
            `LossScaleOptimizer` and the trainer clips.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from oneadam.torch import Adam
        >>> from oneadam.torch.integrations.lightning import AdamCallback
        >>> class Line(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...     def training_step(self, batch, index):
        ...         return torch.nn.functional.mse_loss(self.layer(batch), 2 * batch)
        ...     def configure_optimizers(self):
        ...         return Adam(self.parameters(), learning_rate=0.1, use_ema=True)
        >>> trainer = Trainer(max_epochs=1, callbacks=[AdamCallback()])  # doctest: +SKIP
        >>> trainer.fit(Line(), torch.ones(8, 1, 1))  # doctest: +SKIP
    """

    def __init__(self, prefix: str | None = "oneadam/") -> None:
        if not isinstance(prefix, str | None):
            raise TypeError(f"prefix must be a str, or None to log nothing; received {prefix!r}")
        self.prefix = prefix
        self._averages = Averages()
        self._names: list[list[list[str]]] = []
        self._finished = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the optimizers, and let the trainer clip their gradients if it shall."""
        for optimizer in ours_or_complaint(trainer.optimizers, type(self).__name__):
            if trainer.gradient_clip_val:
                _let_clip(trainer, optimizer)
        self._names = _names(trainer, pl_module)
        self._finished = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the parameters hold their averages."""
        # Outside of fit they hold what they shall be judged by, and the optimizers are of another
        # time than weights loaded from a checkpoint.
        if trainer.state.fn is TrainerFn.FITTING:
            self._averages.enter(ours(trainer.optimizers))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the parameters their trained values back."""
        self._averages.leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the parameters their trained values back."""
        self._averages.leave()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the metrics, when and at which step the trainer logs its own."""
        # As Lightning's own monitors find out. Metrics may have to wait for a device, so they are
        # not taken on other steps.
        if self.prefix is None or not trainer._logger_connector.should_update_logs:
            return
        if pl_module.automatic_optimization and trainer.fit_loop._should_accumulate():
            return
        metrics = self._metrics(ours(trainer.optimizers))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _metrics(self, optimizers: list[Optimizer]) -> dict[str, float]:
        several = len(optimizers) > 1
        return {
            f"{self.prefix}{f'{number}/' if several else ''}{key}": value
            for number, optimizer in enumerate(optimizers)
            for key, value in optimizer.metrics().items()
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close incomplete windows and set the parameters to their averages."""
        finish(ours(trainer.optimizers))
        self._finished = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so where there was nothing left to train, as in a resumed run that was complete."""
        if not self._finished:
            self.on_train_end(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Where checkpoints hold the state of this callback, or of a subclass."""
        return _KEY

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the parameters of each optimizer, to find their averages by."""
        return {_PARAMETERS: self._names}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the trained values into a checkpoint that is saved during validation."""
        if self._averages.entered:
            self._averages.leave()
            trained = trainer.strategy.lightning_module_state_dict()
            checkpoint["state_dict"] = {key: _copied(value) for key, value in trained.items()}
            self._averages.enter(ours(trainer.optimizers))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the averages from a checkpoint that is loaded to evaluate or predict."""
        if trainer.state.fn is not TrainerFn.FITTING:
            averaged = {**checkpoint, "state_dict": averaged_state_dict(checkpoint)}
            trainer.strategy.load_model_state_dict(averaged, strict=pl_module.strict_loading)


def _let_clip(trainer: Trainer, optimizer: Optimizer) -> None:
    if isinstance(optimizer, LossScaleOptimizer):
        raise ValueError(
            "gradient_clip_val must be None with a LossScaleOptimizer, whose gradients are clipped"
            f" before they are unscaled, received {trainer.gradient_clip_val!r}; set clipping in"
            " the optimizer"
        )
    # In mixed precision Lightning clips no optimizer that could unscale gradients itself, even
    # where there is no scale. Of one that seems unable to it unscales them first.
    optimizer._step_supports_amp_scaling = False


def averaged_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the module's state from a checkpoint, with averages in place of trained values.

    Args:
        checkpoint: what `torch.load` read from a file that a Trainer with `AdamCallback` saved.
            It is left as it is.

    Returns:
        A dict for `module.load_state_dict`. What has no average is as in the checkpoint.

    Example:
        >>> from oneadam.torch.integrations.lightning import averaged_state_dict
        >>> averaged_state_dict({"state_dict": {"weight": 1.0}})
        {'weight': 1.0}
    """
    state = dict(checkpoint["state_dict"])
    own = checkpoint.get("callbacks", {}).get(_KEY, {})
    optimizers = checkpoint.get("optimizer_states", ())
    for names, optimizer in zip(own.get(_PARAMETERS, ()), optimizers, strict=False):
        for number, aliases in enumerate(names):
            entry = optimizer["state"].get(number, {})
            if entry.get("averaged", False):
                state.update(
                    {
                        name: entry["average"].to(state[name].dtype)
                        for name in aliases
                        if name in state
                    }
                )
    return state


def _names(trainer: Trainer, module: LightningModule) -> list[list[list[str]]]:
    """The names of each optimizer's parameters, in its order; tied ones have several."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    return [
        [
            aliases.get(id(parameter), [])
            for group in unwrapped(optimizer).param_groups
            for parameter in group["params"]
        ]
        for optimizer in trainer.optimizers
    ]


def _copied(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value
