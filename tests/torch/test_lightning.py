"""Lightning's Trainer with the optimizer and its callback."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from oneadam.torch import Adam, LossScaleOptimizer

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision

from oneadam.torch.integrations._optimizers import ours
from oneadam.torch.integrations.lightning import AdamCallback, averaged_state_dict

pytestmark = [
    # Lightning's own, of torch.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    # The ModelCheckpoint is not needed to go on from what it has saved.
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]

BATCH = 20
BATCHES = 7
"""In an epoch; odd, so that the last accumulation window of an epoch is incomplete."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with trainers.one_thread():
        yield


class Digits(LightningModule):
    """Learns the digits, and takes down what it sees."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = trainers.network()
        self.options = trainers.RECIPE | options
        self.validated: list[trainers.Values] = []
        self.tested: list[trainers.Values] = []
        self.history: trainers.History | None = None

    def configure_optimizers(self) -> Any:
        return Adam(self.layers.named_parameters(), **self.options)

    @property
    def adam(self) -> Any:
        (optimizer,) = ours(self.trainer.optimizers)
        return optimizer

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return cross_entropy(self.layers(images), labels)

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.history is None:
            self.history = trainers.History(self.layers, lambda: self.adam.updates)
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.history.look()

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated.append(trainers.values(self.layers))
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, index: int) -> None:
        self.tested.append(trainers.values(self.layers))

    @property
    def trained(self) -> trainers.Values:
        """The parameters after the last update within training."""
        return self.history.after[-1]


class Memory(Logger):
    """A logger that keeps what it is given."""

    name, version = "memory", "0"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int | None]] = {}
        self.numbers: dict[str, list[float]] = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for key, value in metrics.items():
            self.steps.setdefault(key, []).append(step)
            self.numbers.setdefault(key, []).append(value)


def loader(count: int = BATCH * BATCHES) -> DataLoader:
    return DataLoader(trainers.data(count).training, batch_size=BATCH)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **(defaults | options))


def fit(module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    made = trainer(*callbacks, **options)
    made.fit(module, loader(), loader(BATCH))
    return made


def test_fit_ends_with_the_averages() -> None:
    module = Digits(gradient_accumulation_steps=None)
    fit(module, AdamCallback())
    averages = trainers.averages_of(module.history.after)
    assert len(module.history.after) == 2 * BATCHES
    assert trainers.far(trainers.values(module.layers), averages) == []
    assert trainers.far(trainers.values(module.layers), module.trained) != []


def test_without_the_callback_fit_ends_with_the_trained_values() -> None:
    module = Digits(gradient_accumulation_steps=None)
    fit(module)
    assert trainers.differing(trainers.values(module.layers), module.trained) == []
    assert trainers.far(module.trained, trainers.averages_of(module.history.after)) != []


def test_without_averages_fit_ends_with_the_trained_values() -> None:
    module = Digits(gradient_accumulation_steps=None, use_ema=False)
    fit(module, AdamCallback())
    assert trainers.differing(trainers.values(module.layers), module.trained) == []


def test_the_module_ends_training_with_the_averages() -> None:
    class Exporting(Digits):
        def on_train_end(self) -> None:
            self.exported = trainers.values(self.layers)

    module = Exporting()
    fit(module, AdamCallback())
    assert trainers.differing(module.exported, trainers.values(module.layers)) == []
    assert trainers.differing(module.exported, module.trained) != []


def test_validation_sees_the_averages_and_training_goes_on_from_the_trained_values() -> None:
    class Watching(Digits):
        def on_train_epoch_start(self) -> None:
            self.at_start = trainers.values(self.layers)

        def on_train_epoch_end(self) -> None:
            self.at_end = trainers.values(self.layers)

    module = Watching()
    fit(module, AdamCallback(), num_sanity_val_steps=0)
    after = module.history.after
    in_epoch = BATCHES // 2
    assert len(module.validated) == 2
    for seen, until in zip(module.validated, (in_epoch, len(after)), strict=True):
        assert trainers.far(seen, trainers.averages_of(after[:until])) == []
        assert trainers.far(seen, after[until - 1]) != []
    assert trainers.differing(module.at_start, after[in_epoch - 1]) == []
    assert trainers.differing(module.at_end, after[-1]) == []


def test_validating_changes_nothing_of_the_training() -> None:
    with_it, without = Digits(), Digits()
    fit(with_it, AdamCallback(), val_check_interval=3)
    fit(without, AdamCallback(), limit_val_batches=0)
    assert len(with_it.validated) > 4
    assert trainers.differing(with_it.trained, without.trained) == []
    assert trainers.differing(trainers.values(with_it), trainers.values(without)) == []


def test_without_the_callback_validation_sees_the_trained_values() -> None:
    module = Digits()
    fit(module, num_sanity_val_steps=0)
    assert trainers.differing(module.validated[-1], module.trained) == []


def test_the_sanity_check_before_the_first_update_sees_the_initial_values() -> None:
    module = Digits()
    initial = trainers.values(module.layers)
    fit(module, AdamCallback(), num_sanity_val_steps=1)
    assert len(module.validated) == 3
    assert trainers.differing(module.validated[0], initial) == []


class Failing(Digits):
    error: type[BaseException] | None = ZeroDivisionError

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        if self.history is not None and self.error is not None:
            raise self.error("stop")


def test_the_trained_values_are_restored_where_validation_raises() -> None:
    module = Failing()
    with pytest.raises(ZeroDivisionError, match="stop"):
        fit(module, AdamCallback())
    assert trainers.far(module.validated[-1], module.trained) != []
    assert trainers.differing(trainers.values(module.layers), module.trained) == []


def test_the_trained_values_are_restored_after_an_interrupt() -> None:
    handler = signal.getsignal(signal.SIGINT)
    module = Failing()
    module.error = KeyboardInterrupt
    try:
        # Lightning leaves the process itself.
        with pytest.raises(SystemExit):
            fit(module, AdamCallback())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert trainers.far(module.validated[-1], module.trained) != []
    assert trainers.differing(trainers.values(module.layers), module.trained) == []


def test_fitting_again_after_an_exception_in_validation() -> None:
    module, callback = Failing(), AdamCallback()
    with pytest.raises(ZeroDivisionError):
        fit(module, callback)
    module.error = module.history = None
    fit(module.train(), callback)
    assert trainers.far(trainers.values(module.layers), module.trained) != []


@pytest.mark.parametrize("callbacks", [[AdamCallback], []], ids=["callback", "control"])
def test_a_last_incomplete_window_is_closed(callbacks: list[type[Callback]]) -> None:
    module = Digits()
    fit(module, *(make() for make in callbacks), max_epochs=1)
    assert module.adam.calls == BATCHES
    assert module.adam.updates == BATCHES // 2 + len(callbacks)


def test_an_average_includes_the_last_incomplete_window() -> None:
    module = Digits(ema_momentum=0.0)
    fit(module, AdamCallback(), max_epochs=1)
    # With momentum 0 the average is the last trained value, which is that after the flush.
    assert trainers.differing(trainers.values(module.layers), module.trained) != []
    assert module.adam.param_groups[0]["accumulated_calls"] == 0


def test_metrics_are_logged_when_the_trainer_logs() -> None:
    module, memory = Digits(), Memory()
    fit(module, AdamCallback(), logger=memory, log_every_n_steps=4)
    assert memory.steps["loss"] == [3, 7, 11]
    for key in ("learning_rate", "calls", "updates", "skipped_calls", "gradient_norm"):
        assert memory.steps[f"oneadam/{key}"] == memory.steps["loss"]
    assert memory.numbers["oneadam/calls"] == [4, 8, 12]
    assert memory.numbers["oneadam/updates"] == [2, 4, 6]
    assert memory.numbers["oneadam/learning_rate"] == [0.01] * 3
    assert all(norm > 0 for norm in memory.numbers["oneadam/gradient_norm"])


def test_the_prefix_names_the_metrics_and_none_logs_nothing() -> None:
    named, silent = Memory(), Memory()
    fit(Digits(), AdamCallback("adam-"), logger=named, log_every_n_steps=4)
    fit(Digits(), AdamCallback(None), logger=silent, log_every_n_steps=4)
    assert "adam-gradient_norm" in named.numbers
    assert not [key for key in silent.numbers if "updates" in key]
    assert silent.steps["loss"] == named.steps["loss"]


def test_a_prefix_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prefix must be a str.*received 3"):
        AdamCallback(3)


class Manual(Digits):
    """Several optimizers, stepped by hand: one per layer, and one that is of torch."""

    def __init__(self) -> None:
        super().__init__(gradient_accumulation_steps=None)
        self.automatic_optimization = False
        self.bias = nn.Parameter(torch.zeros(10))

    def configure_optimizers(self) -> Any:
        first, _, last = self.layers
        return [
            Adam(first.parameters(), **self.options),
            torch.optim.SGD([self.bias], lr=0.1),
            Adam(last.parameters(), **self.options),
        ]

    @property
    def adam(self) -> Any:
        return ours(self.trainer.optimizers)[0]

    def loss(self, batch: Any) -> Tensor:
        images, labels = batch
        return cross_entropy(self.layers(images) + self.bias, labels)

    def training_step(self, batch: Any, index: int) -> None:
        if self.history is None:
            self.history = trainers.History(self, lambda: self.adam.updates)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()


def test_several_optimizers_and_one_that_is_not_ours() -> None:
    module, memory = Manual(), Memory()
    fit(module, AdamCallback(), logger=memory, log_every_n_steps=4)
    averages = trainers.averages_of(module.history.after)
    ended = trainers.values(module)
    bias = averages.pop("bias")
    assert trainers.far({"bias": bias}, {"bias": module.trained["bias"]}) != []
    assert trainers.differing({"bias": ended.pop("bias")}, {"bias": module.trained["bias"]}) == []
    assert trainers.far(ended, averages) == []
    assert memory.numbers["oneadam/0/updates"] == memory.numbers["oneadam/1/updates"]
    assert "oneadam/updates" not in memory.numbers
    assert "oneadam/2/updates" not in memory.numbers


def test_a_trainer_with_no_optimizer_of_ours_is_refused() -> None:
    class Foreign(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    with pytest.raises(ValueError, match=r"AdamCallback needs .*AdamW.*or leave out"):
        fit(Foreign(), AdamCallback())


class Scaled(Digits):
    """The dynamic loss scale, in automatic optimization."""

    def configure_optimizers(self) -> Any:
        return LossScaleOptimizer(super().configure_optimizers(), initial_scale=2.0**10)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.optimizers().scale_loss(super().training_step(batch, index))


def test_a_loss_scale_optimizer_ends_where_the_inner_one_alone_does() -> None:
    scaled, plain, memory = Scaled(), Digits(), Memory()
    fit(scaled, AdamCallback(), logger=memory, log_every_n_steps=4)
    fit(plain, AdamCallback())
    assert trainers.far(trainers.values(scaled), trainers.values(plain)) == []
    assert trainers.far(trainers.values(scaled.layers), scaled.trained) != []
    assert memory.numbers["oneadam/loss_scale"] == [2.0**10] * 3


class SavesWhileValidating(Callback):
    """Saves a checkpoint when the parameters hold their averages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def weights(checkpoint: dict[str, Any]) -> trainers.Values:
    return {key.removeprefix("layers."): v for key, v in checkpoint["state_dict"].items()}


def averages(checkpoint: dict[str, Any]) -> trainers.Values:
    return weights({"state_dict": averaged_state_dict(checkpoint)})


@pytest.mark.parametrize("kind", [Digits, Scaled])
def test_checkpoints_hold_the_trained_values_whenever_they_are_saved(
    tmp_path: Path, kind: type[Digits]
) -> None:
    module = kind()
    best = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    fit(module, SavesWhileValidating(tmp_path / "midst.ckpt"), AdamCallback(), best)
    for file in ("midst.ckpt", "last.ckpt"):
        checkpoint = torch.load(tmp_path / file, weights_only=True)
        assert trainers.differing(weights(checkpoint), module.trained) == [], file
        assert trainers.differing(averages(checkpoint), module.validated[-1]) == [], file
        assert trainers.differing(weights(checkpoint), module.validated[-1]) != [], file


def test_without_the_callback_a_checkpoint_holds_what_the_parameters_hold(tmp_path: Path) -> None:
    module = Digits()
    fit(module, ModelCheckpoint(tmp_path, save_last=True))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert trainers.differing(averages(checkpoint), weights(checkpoint)) == []


def test_testing_a_checkpoint_uses_its_averages(tmp_path: Path) -> None:
    module = Digits()
    every = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    made = fit(module, AdamCallback(), every, num_sanity_val_steps=0, max_epochs=3)
    made.test(module, loader(BATCH), verbose=False)
    assert trainers.differing(module.tested[-1], trainers.values(module.layers)) == []
    assert trainers.differing(module.tested[-1], module.validated[-1]) != []
    for epoch in range(2):
        path = tmp_path / f"epoch={epoch}.ckpt"
        made.test(module, loader(BATCH), ckpt_path=path, verbose=False)
        assert trainers.differing(module.tested[-1], module.validated[epoch]) == []
        made.validate(module, loader(BATCH), ckpt_path=path, verbose=False)
        assert trainers.differing(module.validated[-1], module.validated[epoch]) == []
        other = Digits()
        trainer(AdamCallback()).test(other, loader(BATCH), ckpt_path=path, verbose=False)
        assert trainers.differing(other.tested[-1], module.validated[epoch]) == []


def test_averages_reach_all_names_of_a_tied_parameter(tmp_path: Path) -> None:
    class Tied(Digits):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.layers[0]

    fit(Tied(), AdamCallback(), ModelCheckpoint(tmp_path, save_last=True))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trained, state = checkpoint["state_dict"], averaged_state_dict(checkpoint)
    for name in ("weight", "bias"):
        assert torch.equal(state[f"again.{name}"], state[f"layers.0.{name}"])
        assert not torch.equal(state[f"again.{name}"], trained[f"again.{name}"])


class Scheduled(Digits):
    """With a scheduler of torch, stepped after every batch."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "gradient_clip_val": 0.7}
    whole, first, second = Scheduled(), Scheduled(), Scheduled()
    whole_trainer = fit(whole, AdamCallback(), max_epochs=3, **options)
    fit(first, AdamCallback(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=1, **options)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["accumulated_calls"] == 1

    resumed = trainer(AdamCallback(), max_epochs=3, **options)
    resumed.fit(second, loader(), loader(BATCH), ckpt_path=tmp_path / "last.ckpt")
    assert second.adam.updates == whole.adam.updates
    assert trainers.differing(trainers.values(second), trainers.values(whole)) == []
    assert trainers.differing(second.trained, whole.trained) == []
    states = [made.optimizers[0].state_dict() for made in (resumed, whole_trainer)]
    assert trainers.unlike(*states) == []
    assert trainers.unlike(states[0], saved["optimizer_states"][0]) != []


def test_a_run_that_starts_anew_from_the_weights_is_another(tmp_path: Path) -> None:
    whole, first, second = Scheduled(), Scheduled(), Scheduled()
    fit(whole, AdamCallback(), max_epochs=3)
    fit(first, AdamCallback(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=1)
    second.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    fit(second, AdamCallback(), max_epochs=2)
    assert trainers.far(trainers.values(second), trainers.values(whole)) != []


def test_a_resumed_run_that_was_complete_ends_with_the_averages(tmp_path: Path) -> None:
    first, second = Digits(), Digits()
    fit(first, AdamCallback(), ModelCheckpoint(tmp_path, save_last=True))
    again = trainer(AdamCallback())
    again.fit(second, loader(), loader(BATCH), ckpt_path=tmp_path / "last.ckpt")
    assert second.history is None, "nothing was left to train"
    assert trainers.differing(trainers.values(second), trainers.values(first)) == []
    assert trainers.differing(trainers.values(second.layers), first.trained) != []


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision: str) -> None:
    module, memory = Digits(gradient_accumulation_steps=None), Memory()
    half = precision == "16-mixed"
    # Named, Lightning would take bfloat16 in its place on a CPU.
    plugin = MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu") if half else None)
    fit(module, AdamCallback(), plugins=[plugin], logger=memory, log_every_n_steps=4)
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert (
        trainers.far(trainers.values(module.layers), trainers.averages_of(module.history.after))
        == []
    )
    # Of gradients with a loss scale in them, the norm would be in the thousands.
    assert all(0 < norm < 10 for norm in memory.numbers["oneadam/gradient_norm"])


def test_an_overflow_under_a_gradient_scaler_changes_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    module = Digits(gradient_accumulation_steps=None)
    initial = trainers.values(module)
    fit(module, AdamCallback(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_steps=1)
    assert scaler.get_scale() < 2.0**127
    assert trainers.differing(trainers.values(module), initial) == []


def test_the_trainer_clips_and_then_the_optimizer() -> None:
    class Norms(Digits):
        seen: tuple[float, ...] = ()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients = [p.grad for p in self.parameters()]
            self.seen = (*self.seen, float(nn.utils.get_total_norm(gradients)))

    module, memory = Norms(gradient_accumulation_steps=None, global_clipnorm=0.1), Memory()
    fit(module, AdamCallback(), logger=memory, log_every_n_steps=1, gradient_clip_val=0.5)
    clipped = [min(norm, 0.5) for norm in module.seen]
    assert max(module.seen) > 0.5
    assert memory.numbers["oneadam/gradient_norm"] == pytest.approx(clipped, rel=1e-5)
    scales = [0.1 / norm for norm in clipped]
    assert memory.numbers["oneadam/clip_scale"] == pytest.approx(scales, rel=1e-5)


def test_the_trainer_clips_unscaled_gradients_under_a_gradient_scaler() -> None:
    module, memory = Digits(gradient_accumulation_steps=None, global_clipnorm=0.1), Memory()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    options = {"logger": memory, "log_every_n_steps": 1, "gradient_clip_val": 0.2}
    fit(module, AdamCallback(), plugins=[plugin], **options)
    # Before the scaler has found its scale there are overflows.
    norms = memory.numbers["oneadam/gradient_norm"]
    assert len(norms) > BATCHES
    assert norms == pytest.approx([0.2] * len(norms), rel=1e-3)


def test_without_the_callback_the_trainer_refuses_to_clip_in_mixed_precision() -> None:
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Digits(), precision="bf16-mixed", gradient_clip_val=0.5)


def test_the_trainer_must_not_clip_scaled_gradients() -> None:
    with pytest.raises(ValueError, match=r"gradient_clip_val must be None .*received 0\.5"):
        fit(Scaled(), AdamCallback(), gradient_clip_val=0.5)


def test_accumulation_of_the_trainer_equals_ours() -> None:
    ours_, theirs = Digits(), Digits(gradient_accumulation_steps=None)
    memory = Memory()
    options = {"max_epochs": 1, "log_every_n_steps": 1}
    fit(ours_, AdamCallback(), **options)
    fit(theirs, AdamCallback(), accumulate_grad_batches=2, logger=memory, **options)
    assert (ours_.adam.calls, theirs.adam.calls) == (BATCHES, BATCHES // 2 + 1)
    assert ours_.adam.updates == theirs.adam.updates == BATCHES // 2 + 1
    assert trainers.far(ours_.trained, theirs.history.after[-2]) == []
    assert memory.numbers["oneadam/updates"] == [1, 2, 3, 4]


def test_learning_rate_schedulers_and_their_monitor() -> None:
    module, memory = Scheduled(), Memory()
    fit(module, AdamCallback(), LearningRateMonitor(), logger=memory, log_every_n_steps=1)
    expected = [0.01 * 0.5 ** (call // 5) for call in range(2 * BATCHES)]
    assert memory.numbers["lr-Adam"] == expected
    assert memory.numbers["oneadam/learning_rate"] == expected


def test_a_one_cycle_scheduler_changes_betas_too() -> None:
    class OneCycle(Digits):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 2 * BATCHES + 1)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module, memory = OneCycle(), Memory()
    monitor = LearningRateMonitor(log_momentum=True)
    fit(module, AdamCallback(), monitor, logger=memory, log_every_n_steps=1)
    momenta = memory.numbers["lr-Adam-momentum"]
    assert max(momenta) == pytest.approx(0.95)
    assert min(momenta) < 0.87
    rates = memory.numbers["oneadam/learning_rate"]
    assert rates == memory.numbers["lr-Adam"]
    assert max(rates) > 10 * min(rates)


def test_the_digits_are_learnt() -> None:
    module = Digits(gradient_accumulation_steps=None, ema_momentum=0.95)
    module.layers = trainers.network(hidden=32)
    made = trainer(AdamCallback(), max_epochs=10)
    data = trainers.data()
    made.fit(module, DataLoader(data.training, batch_size=64), loader(BATCH))
    assert trainers.accuracy(module.layers, data.held_out) > 0.95
