"""The Trainer of Hugging Face transformers with the optimizer and its callback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from oneadam.torch import Adam, LossScaleOptimizer

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from oneadam.torch.integrations.transformers import AdamCallback

BATCH = 8
BATCHES = 7
"""In an epoch; odd, so that the last accumulation window of an epoch is incomplete."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with trainers.one_thread():
        yield


def model(dropout: float = 0.1) -> nn.Module:
    """A BERT of two layers with random weights, the same every time, that reads pixels as words."""
    config = BertConfig(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=10,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


def examples(dataset: torch.utils.data.TensorDataset, count: int) -> list[dict[str, Any]]:
    """Every fourth pixel, of 17 shades of grey."""
    images, labels = (tensor[:count] for tensor in dataset.tensors)
    words = (images[:, ::4] * 16).long()
    return [{"input_ids": word, "labels": label} for word, label in zip(words, labels, strict=True)]


class Watching(TrainerCallback):
    """Takes down the parameters after each update."""

    history: trainers.History

    def on_train_begin(self, *_: Any, model: nn.Module, optimizer: Any, **__: Any) -> None:
        self.history = trainers.History(model, lambda: optimizer.optimizer.updates)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.history.look()


class Run:
    """A Trainer, and what it and the callbacks that are not under test take down."""

    def __init__(
        self,
        folder: Path,
        *callbacks: Any,
        recipe: dict[str, Any] | None = None,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        self.model = model(dropout)
        self.adam = Adam(self.model.named_parameters(), **(trainers.RECIPE | (recipe or {})))
        self.watching = Watching()
        self.evaluated: list[trainers.Values] = []
        defaults: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 2,
            "logging_steps": 4,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
        }
        data = trainers.data()
        self.trainer = Trainer(
            self.model,
            TrainingArguments(**(defaults | options)),
            train_dataset=examples(data.training, BATCH * BATCHES),
            eval_dataset=examples(data.held_out, BATCH),
            optimizers=(self.adam, None),
            callbacks=[*callbacks, self.watching],
            compute_metrics=self.measure,
        )

    def measure(self, _: Any) -> dict[str, float]:
        """Take down the parameters during an evaluation."""
        self.evaluated.append(self.ended)
        return {"evaluations": float(len(self.evaluated))}

    def train(self, **options: Any) -> Run:
        self.trainer.train(**options)
        return self

    @property
    def ended(self) -> trainers.Values:
        return trainers.values(self.model)

    @property
    def after(self) -> list[trainers.Values]:
        return self.watching.history.after

    def logged(self, key: str) -> dict[int, float]:
        """What was logged under a name, by step."""
        return {e["step"]: e[key] for e in self.trainer.state.log_history if key in e}


EVERY = {"gradient_accumulation_steps": None}


def test_training_ends_with_the_averages(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), recipe=EVERY).train()
    assert len(run.after) == 2 * BATCHES
    assert trainers.far(run.ended, trainers.averages_of(run.after)) == []
    assert trainers.far(run.ended, run.after[-1]) != []


def test_without_the_callback_training_ends_with_the_trained_values(tmp_path: Path) -> None:
    run = Run(tmp_path, recipe=EVERY).train()
    assert trainers.differing(run.ended, run.after[-1]) == []
    assert trainers.differing(run.evaluated[-1], run.after[-1]) == []


def test_evaluations_see_the_averages_and_change_nothing_of_the_training(tmp_path: Path) -> None:
    # An evaluation draws a random number, and dropout would see others after it.
    run = Run(tmp_path / "a", AdamCallback(), dropout=0.0).train()
    blind = Run(tmp_path / "b", AdamCallback(), dropout=0.0, eval_strategy="no").train()
    in_epoch = BATCHES // 2
    assert len(run.evaluated) == 2
    for seen, until in zip(run.evaluated, (in_epoch, len(run.after)), strict=True):
        assert trainers.far(seen, trainers.averages_of(run.after[:until])) == []
        assert trainers.far(seen, run.after[until - 1]) != []
    assert trainers.differing(run.after[-1], blind.after[-1]) == []
    assert trainers.differing(run.ended, blind.ended) == []


def test_an_evaluation_before_the_first_update_sees_the_initial_values(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), eval_on_start=True)
    initial = run.ended
    run.train()
    assert trainers.differing(run.evaluated[0], initial) == []
    assert trainers.differing(run.evaluated[1], initial) != []


def test_evaluating_and_predicting_after_training_see_what_it_ended_with(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback()).train()
    with torch.no_grad():
        run.model.classifier.bias.fill_(3.0)
    ended = run.ended
    run.trainer.evaluate()
    run.trainer.predict(run.trainer.eval_dataset)
    assert trainers.differing(run.evaluated[-2], ended) == []
    assert trainers.differing(run.evaluated[-1], ended) == []
    assert trainers.differing(run.ended, ended) == []


def test_predicting_during_training_sees_the_averages(tmp_path: Path) -> None:
    class Predicts(TrainerCallback):
        run: Run

        def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
            if state.global_step == 4:
                self.before = self.run.ended
                self.run.trainer.predict(self.run.trainer.eval_dataset)
                self.after = self.run.ended

    predicts = Predicts()
    run = predicts.run = Run(tmp_path, AdamCallback(), predicts, eval_strategy="no")
    run.train()
    assert trainers.differing(predicts.before, predicts.after) == []
    assert trainers.far(run.evaluated[0], trainers.averages_of(run.after[:2])) == []
    assert trainers.far(run.evaluated[0], predicts.before) != []


def test_an_evaluation_that_no_event_ends_changes_nothing_of_the_training(tmp_path: Path) -> None:
    class Evaluates(TrainerCallback):
        run: Run

        def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
            if state.global_step == 4:
                loader = self.run.trainer.get_eval_dataloader()
                self.run.trainer.evaluation_loop(loader, "by hand")

    evaluates = Evaluates()
    options = {"eval_strategy": "no", "dropout": 0.0}
    run = evaluates.run = Run(tmp_path / "a", AdamCallback(), evaluates, **options)
    run.train()
    blind = Run(tmp_path / "b", AdamCallback(), **options).train()
    assert trainers.far(run.evaluated[0], blind.after[1]) != []
    assert trainers.differing(run.after[-1], blind.after[-1]) == []
    assert trainers.differing(run.ended, blind.ended) == []


class Stop(Exception):
    """Raised by an evaluation."""


def failing(folder: Path, callback: AdamCallback, evaluation: int = 1) -> Run:
    """A run that has stopped because an evaluation raised."""
    run = Run(folder, callback)

    def measure(outcome: Any) -> dict[str, float]:
        Run.measure(run, outcome)
        if len(run.evaluated) == evaluation:
            raise Stop
        return {}

    run.trainer.compute_metrics = measure
    with pytest.raises(Stop):
        run.train()
    return run


class Begins(TrainerCallback):
    """Takes down the parameters before the first step of a run that is trained again."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.values: trainers.Values = {}
        run.trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.values = self.values or self.run.ended


def test_the_trained_values_can_be_restored_where_an_evaluation_raises(tmp_path: Path) -> None:
    callback = AdamCallback()
    run = failing(tmp_path, callback)
    assert trainers.differing(run.ended, run.evaluated[-1]) == []
    callback.restore()
    assert trainers.differing(run.ended, run.after[-1]) == []
    callback.restore()
    assert trainers.differing(run.ended, run.after[-1]) == []


def test_training_again_where_an_evaluation_raised(tmp_path: Path) -> None:
    run = failing(tmp_path, AdamCallback())
    trained = run.after[-1]
    began = Begins(run)
    run.train()
    assert trainers.differing(began.values, trained) == []
    assert trainers.far(run.ended, run.after[-1]) != []


def test_resuming_where_an_evaluation_raised(tmp_path: Path) -> None:
    run = failing(tmp_path, AdamCallback(), evaluation=2)
    saved, _ = checkpoint(tmp_path, BATCHES)
    assert trainers.differing(saved, run.after[-1]) != []
    began = Begins(run)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert trainers.differing(began.values, saved) == []
    assert trainers.far(run.ended, run.after[-1]) != []


@pytest.mark.parametrize("callbacks", [[AdamCallback], []], ids=["callback", "control"])
def test_a_last_incomplete_window_is_closed(tmp_path: Path, callbacks: list[Any]) -> None:
    run = Run(tmp_path, *(make() for make in callbacks), num_train_epochs=1).train()
    assert run.adam.calls == BATCHES
    assert run.adam.updates == BATCHES // 2 + len(callbacks)


def test_metrics_are_logged_with_the_training_loss(tmp_path: Path) -> None:
    class Later(TrainerCallback):
        seen: tuple[dict[str, float], ...] = ()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            self.seen = (*self.seen, dict(logs))

    later = Later()
    run = Run(tmp_path, AdamCallback(), later).train()
    assert run.logged("oneadam/calls") == {4: 4, 8: 8, 12: 12}
    assert run.logged("oneadam/updates") == {4: 2, 8: 4, 12: 6}
    assert run.logged("oneadam/gradient_norm").keys() == run.logged("loss").keys()
    assert run.logged("oneadam/learning_rate") == {4: 0.01, 8: 0.01, 12: 0.01}
    assert ["oneadam/calls" in logs for logs in later.seen] == ["loss" in x for x in later.seen]
    assert run.logged("eval_loss").keys().isdisjoint({4, 8, 12})


def test_the_prefix_names_the_metrics_and_none_logs_nothing(tmp_path: Path) -> None:
    named = Run(tmp_path, AdamCallback("adam-"), num_train_epochs=1).train()
    silent = Run(tmp_path, AdamCallback(None), num_train_epochs=1).train()
    assert named.logged("adam-updates") == {4: 2}
    assert not [key for entry in silent.trainer.state.log_history for key in entry if "upd" in key]
    assert silent.logged("loss").keys() == {4}


def test_a_prefix_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prefix must be a str.*received 3"):
        AdamCallback(3)


def test_an_optimizer_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback())
    run.trainer.optimizer = torch.optim.AdamW(run.model.parameters())
    with pytest.raises(ValueError, match=r"AdamCallback needs .*AdamW.*or leave out"):
        run.train()


def test_the_trainer_must_not_clip_scaled_gradients(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), max_grad_norm=0.5)
    run.trainer.optimizer = LossScaleOptimizer(run.adam)
    with pytest.raises(ValueError, match=r"max_grad_norm must be 0 .*received 0\.5"):
        run.train()


def checkpoint(folder: Path, step: int) -> tuple[trainers.Values, dict[str, Any]]:
    """The weights and the optimizer's state that were saved after a step."""
    where = folder / f"checkpoint-{step}"
    loaded = BertForSequenceClassification.from_pretrained(where, local_files_only=True)
    return trainers.values(loaded), torch.load(where / "optimizer.pt", weights_only=True)


def test_checkpoints_hold_the_trained_values(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback()).train()
    saved, _ = checkpoint(tmp_path, 2 * BATCHES)
    assert trainers.differing(saved, run.after[-1]) == []
    assert trainers.differing(saved, run.evaluated[-1]) != []


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options = {"num_train_epochs": 3, "lr_scheduler_type": "cosine", "max_grad_norm": 0.7}
    whole = Run(tmp_path, AdamCallback(), **options).train()
    _, saved = checkpoint(tmp_path, BATCHES)
    assert saved["param_groups"][0]["accumulated_calls"] == 1

    resumed = Run(tmp_path, AdamCallback(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert resumed.adam.updates == whole.adam.updates
    assert len(resumed.after) < len(whole.after)
    assert trainers.differing(resumed.after[-1], whole.after[-1]) == []
    assert trainers.differing(resumed.ended, whole.ended) == []
    assert trainers.unlike(resumed.adam.state_dict(), whole.adam.state_dict()) == []
    assert trainers.unlike(resumed.adam.state_dict(), saved) != []


def test_resuming_without_the_state_of_the_optimizer_is_another_run(tmp_path: Path) -> None:
    options = {"num_train_epochs": 3, "lr_scheduler_type": "cosine"}
    whole = Run(tmp_path, AdamCallback(), **options).train()
    (tmp_path / f"checkpoint-{BATCHES}" / "optimizer.pt").unlink()
    resumed = Run(tmp_path, AdamCallback(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert trainers.far(resumed.after[-1], whole.after[-1]) != []


BEST_FIRST = {
    # The number of evaluations so far, so the first is the best.
    "metric_for_best_model": "evaluations",
    "greater_is_better": False,
    "load_best_model_at_end": True,
}


def test_the_best_model_at_the_end_is_of_its_averages(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), **BEST_FIRST).train()
    assert run.trainer.state.best_global_step == BATCHES
    assert trainers.differing(run.ended, run.evaluated[0]) == []
    assert trainers.differing(run.ended, run.evaluated[1]) != []


def test_a_best_model_without_averages_is_pointed_out(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), save_only_model=True, **BEST_FIRST)
    with pytest.warns(UserWarning, match="no optimizer.pt, and so no averages"):
        run.train()
    saved = BertForSequenceClassification.from_pretrained(
        tmp_path / f"checkpoint-{BATCHES}", local_files_only=True
    )
    assert trainers.differing(run.ended, trainers.values(saved)) == []


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """The mean over all batches of an accumulation window of the trainer."""
    return cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def test_accumulation_of_the_trainer_equals_ours(tmp_path: Path) -> None:
    options = {"num_train_epochs": 1, "eval_strategy": "no", "logging_steps": 1, "dropout": 0.0}
    # Some gradients of a transformer are zero but for rounding: too small against this epsilon.
    steady = {"epsilon": 1e-3}
    ours = Run(tmp_path, AdamCallback(), recipe=steady, **options)
    theirs = Run(
        tmp_path, AdamCallback(), recipe=EVERY | steady, gradient_accumulation_steps=2, **options
    )
    for run in (ours, theirs):
        run.trainer.compute_loss_func = mean_loss
        run.train()
    assert (ours.adam.calls, theirs.adam.calls) == (BATCHES, BATCHES // 2 + 1)
    # After the last window that both have in full.
    assert trainers.far(ours.after[-1], theirs.after[-2]) == []
    assert trainers.far(ours.after[-1], theirs.after[-1]) != []
    assert theirs.logged("oneadam/updates") == {1: 1, 2: 2, 3: 3, 4: 4}


def test_bfloat16_autocast(tmp_path: Path) -> None:
    run = Run(tmp_path, AdamCallback(), recipe=EVERY, bf16=True).train()
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert trainers.far(run.ended, trainers.averages_of(run.after)) == []
    assert trainers.far(run.ended, run.after[-1]) != []
