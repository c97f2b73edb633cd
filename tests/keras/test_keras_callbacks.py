"""Keras's own callbacks with the Keras door, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import processes
import pytest
from keras import callbacks, ops

from oneadam import schedules
from oneadam.keras import Adam

BACKEND = keras.backend.backend()
EPOCHS = 3
CONFIG: dict[str, Any] = {
    "weight_decay": 0.1,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 3,
    # Five calls in an epoch leave a window open.
    "gradient_accumulation_steps": 2,
}
PROCESS = """
import json, os, signal, sys, warnings
# As in pyproject.toml.
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword")
sys.path += sys.argv[2:]
import keras
import test_keras_callbacks as tests
"""
KILLED = f"""{PROCESS}
class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

tests.fitted([keras.callbacks.BackupAndRestore(sys.argv[1]), Kill()])
"""
BOARD = f"""{PROCESS}
print(json.dumps(tests.on_a_board(sys.argv[1])))
"""
FOLDERS = [Path(__file__).parents[1], Path(__file__).parent]
GUIDE = Path(__file__).parents[2] / "docs" / "keras.md"


def fetched(value: Any) -> np.ndarray:
    return ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    return x, (x @ rng.normal(size=(8, 1))).astype(np.float32)


def model(optimizer: Any) -> Any:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(4, "tanh", name="hidden"), keras.layers.Dense(1, name="last")]
    made = keras.Sequential([keras.Input((8,)), *layers], name="net")
    made.compile(optimizer, loss="mse")
    return made


def fit(trained: Any, watching: list[Any], **options: Any) -> Any:
    trained.fit(
        *data(),
        **{"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": EPOCHS, **options},
        callbacks=watching,
    )
    return trained


def fitted(watching: list[Any], **options: Any) -> Any:
    return fit(model(Adam(0.01, name="adam", **CONFIG)), watching, **options)


def numbers(trained: Any) -> dict[str, np.ndarray]:
    """Return values and state, under the names that a model has after it was loaded too."""
    values = {variable.path: fetched(variable) for variable in trained.trainable_variables}
    every = {**values, **trained.optimizer.state_dict()}
    return {name.removeprefix("net/"): array for name, array in every.items()}


def assert_same(trained: Any, wanted: dict[str, np.ndarray]) -> None:
    found = numbers(trained)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class Watching(callbacks.Callback):
    """Notes what can be seen of the optimizer after each batch and epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, float]] = []
        self.epochs: list[dict[str, Any]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(self.model.optimizer.metrics())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append({**logs, "weights": self.model.get_weights()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, np.ndarray]:
    """What a run comes to that leaves a checkpoint of each epoch."""
    watching = [
        callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
        callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
    ]
    return numbers(fitted(watching))


@pytest.fixture(scope="module")
def watched() -> tuple[Watching, Any]:
    watching = Watching()
    trained = model(Adam(0.01))
    halved = callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch else rate)
    plateau = callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=100.0)
    stopping = callbacks.EarlyStopping(
        "loss", mode="max", min_delta=100.0, patience=3, restore_best_weights=True
    )
    every = [halved, watching, plateau, stopping]
    return watching, fit(trained, every, epochs=9)


class TestSavingAndRestoring:
    def test_a_checkpoint_of_the_model_goes_on(
        self, folder: Path, uninterrupted: dict[str, np.ndarray]
    ) -> None:
        trained = keras.saving.load_model(folder / "1.keras")
        assert (trained.optimizer.calls, trained.optimizer.updates) == (5, 2)
        assert_same(fit(trained, [], initial_epoch=1), uninterrupted)

    def test_a_checkpoint_of_weights_has_the_same_state(
        self, folder: Path, uninterrupted: dict[str, np.ndarray]
    ) -> None:
        trained = model(Adam(0.01, name="adam", **CONFIG))
        trained.optimizer.build(trained.trainable_variables)
        trained.load_weights(folder / "1.weights.h5")
        assert_same(trained, numbers(keras.saving.load_model(folder / "1.keras")))

    def test_a_run_that_was_killed_goes_on(
        self, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
    ) -> None:
        backup = tmp_path / "backup"
        processes.run(KILLED, backup, *FOLDERS, returns=-signal.SIGKILL)
        watching = Watching()
        trained = fitted([callbacks.BackupAndRestore(backup), watching])
        assert [metrics["calls"] for metrics in watching.batches] == list(range(6, 16))
        assert_same(trained, uninterrupted)


class TestAverages:
    @pytest.mark.parametrize("on_epoch", [False, True])
    def test_are_swapped_in_and_out(
        self, on_epoch: bool, tmp_path: Path, uninterrupted: dict[str, np.ndarray]
    ) -> None:
        averages: list[list[np.ndarray]] = []

        class Average(callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if batch == 4:
                    found = self.model.optimizer._model_variables_moving_average
                    averages.append([fetched(average) for average in found])

        watching = [
            Average(),
            callbacks.SwapEMAWeights(swap_on_epoch=on_epoch),
            callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        ]
        history = callbacks.History()
        swapped = fitted([*watching, history], validation_data=data())
        # TensorFlow's way to swap is to add and to subtract.
        apart = 1e-5 if BACKEND == "tensorflow" else 0
        found = numbers(swapped)
        for name, array in uninterrupted.items():
            np.testing.assert_allclose(
                found[name], array, rtol=apart, atol=apart / 10, err_msg=name
            )
        first = keras.saving.load_model(tmp_path / "1.keras")
        seen = first.evaluate(*data(), batch_size=8, verbose=0)
        if on_epoch:
            for value, average in zip(first.get_weights(), averages[0], strict=True):
                np.testing.assert_allclose(value, average, rtol=apart, atol=apart / 10)
            assert history.history["val_loss"][0] == pytest.approx(seen, rel=1e-5)
        else:
            assert history.history["val_loss"][0] != pytest.approx(seen, rel=1e-5)


class TestLearningRates:
    def test_of_callbacks_are_used_and_logged(self, watched: tuple[Watching, Any]) -> None:
        watching, _ = watched
        # The plateau begins after the first epoch.
        wanted = [0.01, 0.005, 0.00025, 0.0000125]
        assert [epoch["learning_rate"] for epoch in watching.epochs] == pytest.approx(wanted)
        seen = [metrics["learning_rate"] for metrics in watching.batches]
        assert seen == pytest.approx(np.repeat(wanted, 5))

    def test_metrics_are_current_in_callbacks(self, watched: tuple[Watching, Any]) -> None:
        watching, _ = watched
        assert [metrics["calls"] for metrics in watching.batches] == list(range(1, 21))

    def test_the_best_weights_come_back(self, watched: tuple[Watching, Any]) -> None:
        watching, trained = watched
        assert len(watching.epochs) == 4
        for value, best in zip(trained.get_weights(), watching.epochs[0]["weights"], strict=True):
            np.testing.assert_array_equal(value, best)

    def test_a_number_takes_the_place_of_a_schedule_at_the_next_call(self) -> None:
        class Change(Watching):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                if batch == 3:
                    self.model.optimizer.learning_rate = 0.5
                if batch == 4:
                    self.model.optimizer.learning_rate = 0.0

        watching = Change()
        trained = model(Adam(schedules.PolynomialDecay(0.1, 10, 0.0, power=1.0)))
        fit(trained, [watching], epochs=1)
        seen = [metrics["learning_rate"] for metrics in watching.batches]
        assert seen == pytest.approx([0.1, 0.09, 0.08, 0.5, 0.0])
        before = trained.get_weights()
        fit(trained, [], epochs=1)
        for value, old in zip(trained.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, old)


def metrics_of_the_guide() -> Any:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if "class Metrics" in block), names)
    return names["Metrics"]


def on_a_board(folder: str) -> list[Any]:
    """Return what the optimizer said after each batch, and what TensorBoard shows of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    class Metrics(metrics_of_the_guide()):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.on_epoch_end(batch, logs)

    watching = Watching()
    halved = callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    # It asks for the number of updates to tell how many there are in a second.
    board = callbacks.TensorBoard(folder, update_freq="batch", write_steps_per_second=True)
    trained = model(Adam(0.01, global_clipnorm=0.1, gradient_accumulation_steps=2))
    fit(trained, [halved, Metrics(), board, watching], epochs=2, validation_data=data())
    shown: dict[str, Any] = {}
    for part in ("train", "validation"):
        events = EventAccumulator(f"{folder}/{part}", size_guidance={"tensors": 0})
        for tag in events.Reload().Tags()["tensors"]:
            shown[tag] = [
                [event.step, tensor_util.make_ndarray(event.tensor_proto).tolist()]
                for event in events.Tensors(tag)
                if tag != "keras"
            ]
    return [watching.batches, shown]


def test_tensorboard_shows_what_the_optimizer_tells(tmp_path: Path) -> None:
    if BACKEND == "tensorflow":
        said, shown = on_a_board(str(tmp_path))
    else:
        # It imports TensorFlow, which would stay.
        said, shown = json.loads(processes.run(BOARD, tmp_path, *FOLDERS))
    assert [metrics["updates"] for metrics in said] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert said[-1]["gradient_norm"] > 0
    for name in said[0]:
        of_batches = [[batch, metrics[name]] for batch, metrics in enumerate(said, start=1)]
        of_epochs = [[0, said[4][name]], [1, said[9][name]]]
        np.testing.assert_allclose(shown[f"batch_{name}"], of_batches, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(shown[f"epoch_{name}"], of_epochs, rtol=1e-6, err_msg=name)
    assert [rate for _, rate in shown["epoch_learning_rate"]] == pytest.approx([0.005, 0.0025])
    assert [step for step, _ in shown["evaluation_loss_vs_iterations"]] == [2, 5]
    assert [step for step, _ in shown["epoch_steps_per_second"]] == [0, 1]


def test_numbers_that_change_in_an_epoch_count_at_the_next_call() -> None:
    before = {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True}
    after = {
        "learning_rate": 0.02,
        "beta_1": 0.5,
        "beta_2": 0.9,
        "epsilon": 1e-3,
        "weight_decay": 0.3,
        "global_clipnorm": 0.1,
        "ema_momentum": 0.5,
    }

    class Change(callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                self.left = numbers(self.model)
                for name, value in after.items():
                    setattr(self.model.optimizer, name, value)

    change = Change()
    changed = fit(model(Adam(0.01, name="adam", **before)), [change], epochs=1)
    left = change.left
    other = model(Adam(name="adam", **{**before, **after}))
    for variable in other.trainable_variables:
        variable.assign(left.pop(variable.path.removeprefix("net/")))
    other.optimizer.build(other.trainable_variables)
    state = {
        name if name.startswith("adam/") else f"net/{name}": array for name, array in left.items()
    }
    other.optimizer.load_state_dict(state, keep_learning_rate=True)
    x, y = data()
    other.fit(x[16:], y[16:], batch_size=8, shuffle=False, verbose=0)
    found = numbers(changed)
    for name, array in numbers(other).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere the variables keep their values")
def test_what_fit_holds_is_not_taken_for_the_state() -> None:
    optimizer = Adam(0.01, gradient_accumulation_steps=2)
    refused = []

    class Ask(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for act in (
                optimizer.metrics,
                optimizer.state_dict,
                optimizer.flush,
                optimizer.get_config,
                lambda: setattr(optimizer, "beta_1", 0.5),
                lambda: setattr(optimizer, "learning_rate", 0.5),
            ):
                with pytest.raises(RuntimeError, match=r"self\.model\.optimizer"):
                    act()
                refused.append(act)
            assert self.model.optimizer.metrics()["calls"] == batch + 1
            optimizer.beta_1 = 0.6

    fit(model(optimizer), [Ask()], epochs=1)
    assert len(refused) == 30
    assert optimizer.beta_1 == 0.6
