"""A run that was stopped and resumed anywhere is, to the last bit, the run that never stopped."""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import processes
import pytest
from snapshots import bits

from oneadam import checkpoint
from oneadam.numpy import Adam, LossScaleOptimizer
from oneadam.schedules import CosineDecay, LearningRateSchedule

CALLS = 8


def halving(calls: int) -> float:
    """A schedule that pickle can name."""
    return 0.1 * 0.5**calls


CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "learning_rate": 0.1,
        "amsgrad": True,
        "weight_decay": 0.1,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 2,
        "gradient_accumulation_steps": 3,
        "loss_scale_factor": 4.0,
        "epsilon_hat": False,
    },
    "schedule": {"learning_rate": CosineDecay(0.2, 6, warmup_steps=2, warmup_target=0.3)},
    "function": {"learning_rate": halving, "use_ema": True},
    "skipping": {"learning_rate": 0.1, "on_nonfinite": "skip", "gradient_accumulation_steps": 2},
}

# After five calls: two updates, an average unlike the variable, and a window that is half full.
MID_WINDOW = {
    **CONFIGS["everything"],
    "gradient_accumulation_steps": 2,
    "ema_overwrite_frequency": None,
}


def started(config: dict[str, Any], scaled: bool = False) -> tuple[dict[str, np.ndarray], Any]:
    rng = np.random.default_rng(1)
    variables = {
        "wide": rng.normal(size=5),
        "kernel": rng.normal(size=(70, 300)).astype(np.float32),
        "half": rng.normal(size=(2, 3)).astype(np.float16),
        "brain": rng.normal(size=(4,)).astype(ml_dtypes.bfloat16),
        "strided": rng.normal(size=(6, 4)).astype(np.float32)[::2].T,
        "scalar": np.array(0.5, np.float32),
        "empty": np.zeros((0, 2), np.float32),
    }
    optimizer: Any = Adam(**config)
    optimizer.exclude_from_weight_decay(var_names=["half"])
    if scaled:
        optimizer = LossScaleOptimizer(optimizer, 64.0, 2)
    optimizer.build(variables)
    return variables, optimizer


def gradients(
    variables: dict[str, np.ndarray], call: int, *, broken: bool
) -> dict[str, np.ndarray | None]:
    """The same in every run: now and then one is missing, or is not finite."""
    rng = np.random.default_rng((call, 2))
    # Small ones at the end, so that the largest second moments are not the latest.
    size = 4.0 if call < 4 else 1e-4
    grads: dict[str, Any] = {
        name: (size * rng.normal(size=v.shape)).astype(np.float32) for name, v in variables.items()
    }
    if call % 3:
        grads[("", "kernel", "half")[call % 3]] = None
    if broken and call == 4:
        grads["scalar"] = np.array(np.inf, np.float32)
    return grads


def step(variables: dict[str, np.ndarray], optimizer: Any, call: int) -> None:
    # Elsewhere one NaN would make all runs equal.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    skips = inner is not optimizer or inner._run.hyperparameters.on_nonfinite == "skip"
    with warnings.catch_warnings():
        # A resumed run says once more which gradients are missing.
        warnings.simplefilter("ignore", UserWarning)
        optimizer.apply(gradients(variables, call, broken=skips))


def trained(
    config: dict[str, Any], calls: int = CALLS, scaled: bool = False
) -> tuple[dict[str, np.ndarray], Any]:
    variables, optimizer = started(config, scaled)
    for call in range(calls):
        step(variables, optimizer, call)
    return variables, optimizer


def everything(variables: dict[str, np.ndarray], optimizer: Any) -> tuple[Any, ...]:
    """All that must be equal."""
    with optimizer.averaged():
        averages = tuple(values.tobytes() for values in variables.values())
    counts = (optimizer.calls, optimizer.updates, optimizer.metrics()["skipped_calls"])
    scale = getattr(optimizer, "scale", None)
    return bits(optimizer, variables.values()), averages, counts, optimizer.learning_rate, scale


Resume = Callable[[dict[str, np.ndarray], Any, Callable[[], Any], Path], Any]


def by_state_dict(variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path) -> Any:
    others, resumed = fresh()
    resumed.load_state_dict(optimizer.state_dict())
    for name, values in variables.items():
        others[name][...] = values
    return others, resumed


def by_file(variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path) -> Any:
    optimizer.save(folder / "run")
    others, resumed = fresh()
    for name, values in variables.items():
        others[name][...] = values
    resumed.load(folder / "run")
    return others, resumed


def by_file_into_a_used_one(
    variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path
) -> Any:
    optimizer.save(folder / "run")
    others, resumed = fresh()
    for call in (7, 3, 5, 6):
        step(others, resumed, call)
    for name, values in variables.items():
        others[name][...] = values
    resumed.load(folder / "run")
    return others, resumed


def by_pickle(variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path) -> Any:
    return pickle.loads(pickle.dumps((variables, optimizer)))


def by_deepcopy(variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path) -> Any:
    return copy.deepcopy((variables, optimizer))


def by_copies_of_copies(
    variables: Any, optimizer: Any, fresh: Callable[[], Any], folder: Path
) -> Any:
    copied = copy.deepcopy((variables, optimizer))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copied = pickle.loads(pickle.dumps(copied, protocol))
    return by_file(*copied, fresh, folder)


WAYS = [
    by_state_dict, by_file, by_file_into_a_used_one, by_pickle, by_deepcopy, by_copies_of_copies,
]  # fmt: skip


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "dynamic loss scale"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_at_every_position(name: str, way: Resume, scaled: bool, tmp_path: Path) -> None:
    config = dict(CONFIGS[name])
    if scaled:
        config.pop("loss_scale_factor", None)
    variables, optimizer = trained(config, CALLS, scaled)
    assert all(np.isfinite(values.astype(np.float64)).all() for values in variables.values())
    wanted = everything(variables, optimizer)
    for position in range(CALLS + 1):
        first, second = trained(config, position, scaled)
        variables, optimizer = way(first, second, lambda: started(config, scaled), tmp_path)
        assert all(
            mine is own
            for mine, own in zip(variables.values(), optimizer.variables.values(), strict=True)
        )
        for call in range(position, CALLS):
            step(variables, optimizer, call)
        assert everything(variables, optimizer) == wanted, f"resumed after {position} calls"


def test_stopped_after_every_call(tmp_path: Path) -> None:
    config = CONFIGS["everything"]
    ways = itertools.cycle(WAYS)
    variables, optimizer = started(config)
    for call in range(CALLS):
        step(variables, optimizer, call)
        variables, optimizer = next(ways)(variables, optimizer, lambda: started(config), tmp_path)
    assert everything(variables, optimizer) == everything(*trained(config))


@pytest.mark.parametrize("then", ["flush", "finalize", "learning rate"])
def test_what_happens_between_calls_is_resumed_too(then: str, tmp_path: Path) -> None:
    config, seen = MID_WINDOW, []
    for way in (None, *WAYS):
        variables, optimizer = trained(config, 5)
        if then == "flush":
            optimizer.flush()
        elif then == "finalize":
            optimizer.finalize_variable_values(variables)
        else:
            optimizer.learning_rate = 0.03
        if way:
            variables, optimizer = way(variables, optimizer, lambda: started(config), tmp_path)
        for call in range(5, CALLS):
            step(variables, optimizer, call)
        seen.append(everything(variables, optimizer))
    assert all(one == seen[0] for one in seen)
    assert seen[0] != everything(*trained(config))


FRESH_PROCESS = """
    import hashlib, sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    import test_resume
    from oneadam import checkpoint

    folder, name, position = sys.argv[2], sys.argv[3], int(sys.argv[4])
    scaled = name == "scaled"
    config = {"learning_rate": 0.1} if scaled else test_resume.CONFIGS[name]
    variables, optimizer = test_resume.started(config, scaled)
    saved, _ = checkpoint.read(folder + "/variables")
    for key, values in variables.items():
        values[...] = saved[key]
    optimizer.load(folder + "/optimizer")
    for call in range(position, test_resume.CALLS):
        test_resume.step(variables, optimizer, call)
    print(hashlib.sha256(repr(test_resume.everything(variables, optimizer)).encode()).hexdigest())
"""


@pytest.mark.parametrize("name", ["everything", "scaled"])
def test_resumed_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    scaled, position = name == "scaled", 5
    config = {"learning_rate": 0.1} if scaled else CONFIGS[name]
    variables, optimizer = trained(config, position, scaled)
    checkpoint.write(tmp_path / "variables", variables, {})
    optimizer.save(tmp_path / "optimizer")
    wanted = repr(everything(*trained(config, CALLS, scaled)))
    tests = Path(__file__).parent
    said = processes.run(FRESH_PROCESS, tests, tmp_path, name, position)
    assert said.strip() == hashlib.sha256(wanted.encode()).hexdigest()


def test_pickled_into_a_fresh_process(tmp_path: Path) -> None:
    config = {**CONFIGS["everything"], "learning_rate": CosineDecay(0.2, 6)}
    variables, optimizer = trained(config, 5)
    (tmp_path / "pickle").write_bytes(pickle.dumps((variables, optimizer)))
    code = """
    import pickle, sys
    with open(sys.argv[1] + "/pickle", "rb") as file:
        variables, optimizer = pickle.load(file)
    optimizer.apply({name: values * 0 + 1 for name, values in variables.items()})
    with open(sys.argv[1] + "/pickle", "wb") as file:
        pickle.dump((variables, optimizer), file)
    """
    processes.run(code, tmp_path)
    found = pickle.loads((tmp_path / "pickle").read_bytes())
    optimizer.apply({name: values * 0 + 1 for name, values in variables.items()})
    assert everything(*found) == everything(variables, optimizer)


def test_a_copy_of_the_optimizer_alone_has_variables_of_its_own() -> None:
    variables, optimizer = trained(CONFIGS["everything"], 4)
    wanted = everything(*trained(CONFIGS["everything"]))
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        alone = duplicate(optimizer)
        own = alone.variables
        assert all(a is not b for a, b in zip(own.values(), variables.values(), strict=True))
        for call in range(4, CALLS):
            step(own, alone, call)
        assert everything(own, alone) == wanted
    for call in range(4, CALLS):
        step(variables, optimizer, call)
    assert everything(variables, optimizer) == wanted


def test_copies_keep_configuration_and_exclusions() -> None:
    _, optimizer = trained(CONFIGS["everything"], 2)
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        copied = duplicate(optimizer)
        assert copied.get_config() == optimizer.get_config()
        assert "half" in str(copied.get_config())
        assert copied.metrics() == optimizer.metrics()


def test_an_optimizer_that_is_not_built_yet_can_be_copied() -> None:
    optimizer = Adam(0.25, use_ema=True)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    for duplicate in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        copied = duplicate(optimizer)
        assert copied.get_config() == optimizer.get_config()
        copied.build([np.ones(3)])
    scaled = LossScaleOptimizer(optimizer, 8.0, 3, minimum_scale=2.0)
    copied = copy.deepcopy(scaled)
    assert copied.get_config() == scaled.get_config()
    assert copied.scale == 8.0


def test_an_array_that_excludes_itself_keeps_doing_so_in_a_copy() -> None:
    # The exclusion is by identity until the build gives it a name.
    def moved(through: Callable[[Any], Any]) -> list[np.ndarray]:
        variables = [np.ones(3, np.float32), np.ones(3, np.float32)]
        optimizer = Adam(0.5, weight_decay=0.5)
        optimizer.exclude_from_weight_decay([variables[1]])
        variables, optimizer = through((variables, optimizer))
        optimizer.build(variables)
        optimizer.apply([np.zeros(3, np.float32)] * 2)
        return variables

    for through in (lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        decayed, exempt = moved(through)
        assert (decayed == 0.75).all()
        assert (exempt == 1.0).all()


def test_a_copy_made_inside_averaged_is_refused() -> None:
    # Its variables would be averages, and nobody would ever leave the block of the copy.
    variables, optimizer = trained({"learning_rate": 0.1, "use_ema": True}, 3)
    with optimizer.averaged():
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="averaged"):
                duplicate((variables, optimizer))
    step(variables, optimizer, 3)


class Stateless(LearningRateSchedule):
    """A user's schedule without a configuration."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (step + 1)


@pytest.mark.parametrize("rate", [Stateless(), lambda: 0.1, lambda calls: 0.1 / (calls + 1)])
def test_what_cannot_be_written_down_does_not_keep_a_run_from_being_saved(
    rate: Any, tmp_path: Path
) -> None:
    config = {"learning_rate": rate}
    variables, optimizer = trained(config, 4)
    others, resumed = by_file(variables, optimizer, lambda: started(config), tmp_path)
    for call in range(4, CALLS):
        step(others, resumed, call)
    assert everything(others, resumed) == everything(*trained(config))


def test_the_comparison_sees_a_lost_part() -> None:
    wanted = everything(*trained(MID_WINDOW))
    for slot in ("momentum", "velocity", "velocity_hat", "gradient_accumulator", "updates",
                 "average", "averaged", "in_window", None):  # fmt: skip
        variables, optimizer = trained(MID_WINDOW, 5)
        state = optimizer.state_dict()
        if slot is not None:
            state[f"strided/{slot}"] = np.zeros_like(state[f"strided/{slot}"])
        if slot == "in_window":  # what tells in a window whose last call has no gradient
            state["half/in_window"] = np.array(False)
        optimizer.load_state_dict(state)
        for call in range(5, CALLS):
            step(variables, optimizer, call)
        found = everything(variables, optimizer)
        assert (found == wanted) == (slot is None), slot
