"""`oneadam demo`: it trains, shows it, and survives being killed."""

import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from demos import (
    FILES,
    PROGRESS,
    assert_same_outcome,
    content,
    environment,
    epochs_done,
    history,
    invoke,
    relative_differences,
    run,
    started,
)
from safetensors.numpy import load_file
from typer.testing import CliRunner

from oneadam.cli import progress
from oneadam.cli.app import app
from oneadam.cli.comparison import among, between
from oneadam.cli.digits import Examples, batches, load
from oneadam.cli.frameworks import configured_backend
from oneadam.cli.network import CLASSES, PIXELS, accuracy, initial_parameters, loss_and_gradients
from oneadam.cli.recipe import Epoch

TITLES = {"torch": "PyTorch", "jax": "JAX"}
"""Of the frameworks that train beside NumPy."""
NEEDS = {
    name: pytest.mark.skipif(find_spec(name) is None, reason=f"could not import '{name}'")
    for name in TITLES
}
IN_EACH = [pytest.param(name, marks=mark) for name, mark in NEEDS.items()]


def refusal(*options: object) -> str:
    """Return what a command says that must be refused."""
    result = CliRunner().invoke(app, ["demo", *map(str, options)])
    assert result.exit_code == 2, result
    assert isinstance(result.exception, SystemExit), result
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    invoke("--epochs", 4, "--seed", 7, "--out", folder)
    return folder


def test_the_full_run_reaches_97_percent_and_is_quiet_off_a_terminal(tmp_path):
    process = run("--out", tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    last = history(tmp_path)[-1]
    assert last[1] >= 0.97, "trained weights"
    assert last[2] >= 0.97, "averaged weights"

    lines = process.stdout.splitlines()
    assert len(lines) <= 15
    assert process.stdout.isascii()
    assert "\x1b" not in process.stdout
    assert "\r" not in process.stdout
    assert lines[0].split() == [
        "epoch",
        "loss",
        "accuracy",
        "learning",
        "rate",
        "gradient",
        "norm",
        "examples/s",
    ]
    for weights, share in (("trained", last[1]), ("averaged", last[2])):
        assert any(line.split()[:2] == [weights, f"{share:.2%}"] for line in lines)


def test_the_picture_is_a_png(finished):
    assert (finished / "training.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_run_is_reproduced_by_its_seed_and_changed_by_another(finished, tmp_path):
    invoke("--epochs", 4, "--seed", 7, "--out", tmp_path / "same")
    invoke("--epochs", 4, "--seed", 8, "--out", tmp_path / "other")
    assert_same_outcome(tmp_path / "same", finished)
    assert content(tmp_path / "other" / PROGRESS) != content(finished / PROGRESS)


def test_killed_at_any_moment_it_resumes_bit_for_bit(tmp_path):
    options = ("--epochs", 8, "--seed", 3)
    assert run(*options, "--out", tmp_path / "whole").returncode == 0
    seed = random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    for attempt in range(3):
        folder = tmp_path / f"killed-{attempt}"
        # The second kill strikes a run that was itself resumed.
        for resume in ((), ("--resume",)):
            _kill(moments, *options, *resume, "--out", folder)
            print(f"killed after {epochs_done(folder)} epochs")
        assert run(*options, "--resume", "--out", folder).returncode == 0
        assert_same_outcome(folder, tmp_path / "whole")


def test_killed_between_two_epochs_it_resumes_bit_for_bit(finished, tmp_path):
    with started("--epochs", 4, "--seed", 7, "--out", tmp_path) as process:
        # The heading, and the line of the first epoch.
        assert process.stdout.readline()
        assert process.stdout.readline()
        process.kill()
    assert 1 <= epochs_done(tmp_path) <= 4
    # The run's own settings are found again.
    assert run("--resume", "--out", tmp_path).returncode == 0
    assert_same_outcome(tmp_path, finished)


def _kill(moments: random.Random, *options: object) -> None:
    """Kill a run some time after it has printed some of its lines, or none."""
    lines = moments.choice([0, 1, 2, 3, 4, 5])
    with started(*options) as process:
        for _ in range(lines):
            process.stdout.readline()
        try:
            process.wait(moments.uniform(0, 0.05 if lines else 2))
        except subprocess.TimeoutExpired:
            process.kill()


def test_resuming_a_finished_run_shows_its_table_again(finished):
    before = {name: content(finished / name) for name in FILES}
    said = invoke("--resume", "--out", finished)
    assert "finished all its 4 epochs" in said
    assert "held-out accuracy" in said
    assert {name: content(finished / name) for name in FILES} == before


def test_resuming_where_nothing_began_starts_and_says_so(finished, tmp_path):
    said = invoke("--resume", "--epochs", 4, "--seed", 7, "--out", tmp_path)
    assert "starts at epoch 1" in said
    assert_same_outcome(tmp_path, finished)


@pytest.mark.parametrize(("option", "value"), [("--epochs", 0), ("--epochs", -3), ("--seed", -1)])
def test_bad_numbers_are_refused(tmp_path, option, value):
    message = refusal(option, value, "--out", tmp_path / "none")
    assert option in message
    assert str(value) in message
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", [("--epochs", 5), ("--seed", 8)])
def test_resuming_with_other_settings_is_refused(finished, option):
    before = (finished / PROGRESS).read_bytes()
    message = refusal("--resume", *option, "--out", finished)
    assert option[0] in message
    assert "without --resume" in message
    assert (finished / PROGRESS).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "--out" in refusal("--epochs", 1, "--out", file)
    assert "--out" in refusal("--epochs", 1, "--out", file / "below")
    assert file.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_in_which_no_file_can_be_made_is_refused():
    # Unlike a folder without permission to write, this one refuses the superuser too.
    assert "--out" in refusal("--epochs", 1, "--out", "/proc/self")


DAMAGES = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "pickled": lambda whole: b"\x80\x04K\x01.",
    "of another network": lambda whole: whole.replace(b"hidden/kernel", b"latent/kernel"),
    "of another recipe": lambda whole: whole.replace(b'batch\\": 16', b'batch\\": 32'),
    "of more epochs than it has": lambda whole: whole.replace(b'epochs\\": 4', b'epochs\\": 3'),
    "without its recipe": lambda whole: whole.replace(b'"recipe"', b'"folder"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_file_is_refused_and_left_alone(finished, tmp_path, damage):
    whole = (finished / PROGRESS).read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    file = tmp_path / PROGRESS
    file.write_bytes(damaged)
    message = refusal("--resume", "--out", tmp_path)
    assert str(file) in message
    assert "without --resume" in message
    assert file.read_bytes() == damaged


def test_the_optimizers_own_file_is_not_taken_for_a_run(finished, tmp_path):
    (tmp_path / PROGRESS).write_bytes((finished / "optimizer.safetensors").read_bytes())
    assert "not a file of oneadam demo" in refusal("--resume", "--out", tmp_path)


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch its threads back, of which the demo takes one."""
    if find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Beside(NamedTuple):
    """A short run with a framework beside NumPy, and what it said."""

    framework: str
    folder: Path
    said: str

    @property
    def files(self) -> set[str]:
        return {*FILES, f"optimizer-{self.framework}.safetensors"}

    @property
    def histories(self) -> tuple[np.ndarray, np.ndarray]:
        """NumPy's, and that of the framework."""
        return history(self.folder), history(self.folder, self.framework)


def _run_beside(framework: str, folder: Path) -> Beside:
    process = run("--framework", framework, "--epochs", 4, "--seed", 7, "--out", folder)
    assert (process.returncode, process.stderr) == (0, "")
    return Beside(framework, folder, process.stdout)


@pytest.fixture(params=IN_EACH, scope="module")
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    return _run_beside(request.param, tmp_path_factory.mktemp(request.param))


def test_the_curves_of_all_frameworks_coincide(beside, finished, tmp_path):
    numpys, others = beside.histories
    np.testing.assert_array_equal(numpys, history(finished))
    assert relative_differences(numpys[:, 0], others[:, 0]).max() < 1e-4
    np.testing.assert_allclose(others[:, 4], numpys[:, 4], rtol=1e-3)
    # JAX evaluates schedules in float32: some roundings of the largest rate, 0.005.
    rounded = 2e-9 if beside.framework == "jax" else 0
    np.testing.assert_allclose(others[:, 3], numpys[:, 3], rtol=0, atol=rounded)
    # One digit of 360 may be judged differently.
    np.testing.assert_allclose(others[:, 1:3], numpys[:, 1:3], atol=1.5 / 360)
    # They are two computations all the same, and another order of the data is another curve.
    assert (others[:, 0] != numpys[:, 0]).any()
    invoke("--epochs", 4, "--seed", 8, "--out", tmp_path)
    assert relative_differences(numpys[:, 0], history(tmp_path)[:, 0]).max() > 1e-2


def test_other_frameworks_are_shown_beside_numpy(beside, finished):
    lines, titles = beside.said.splitlines(), ["NumPy", TITLES[beside.framework]]
    assert [line for line in lines if line in ("NumPy", *TITLES.values())] == titles
    assert beside.said.isascii()
    weights = [line.split()[:2] for line in lines if "of 360" in line]
    assert weights == [[f, w] for f in titles for w in ("trained", "averaged")]
    (closeness,) = [line for line in lines if line.startswith(" and ".join(titles))]
    numpys, others = (rows[:, 0] for rows in beside.histories)
    losses, *weights_and_averages = closeness.split()[-3:]
    assert losses == f"{relative_differences(numpys, others).max():.1e}"
    assert all(1e-8 < float(number) < 1e-4 for number in weights_and_averages)
    assert {path.name for path in beside.folder.iterdir()} == beside.files
    picture = (beside.folder / "training.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture != (finished / "training.png").read_bytes()


@NEEDS["torch"]
@pytest.mark.usefixtures("threads")
def test_the_network_of_torch_is_that_of_numpy():
    import torch

    from oneadam.cli.recipe import Recipe
    from oneadam.cli.torch_training import Training

    digits = load()
    training = Training(Recipe(epochs=1, seed=3), digits)
    assert isinstance(training.optimizer, torch.optim.Optimizer)
    batch = Examples(digits.training.images[:16], digits.training.labels[:16])
    parameters = initial_parameters(3)
    loss, gradients = loss_and_gradients(parameters, batch)
    assert training.accuracy(digits.held_out) == accuracy(parameters, digits.held_out)
    assert training.step(batch) == pytest.approx(loss, rel=1e-6)
    (group,) = training.optimizer.param_groups
    for name, param in zip(group["param_names"], group["params"], strict=True):
        layer, _, kind = name.partition(".")
        expected = gradients[layer]["kernel" if kind == "weight" else kind]
        np.testing.assert_allclose(param.grad.numpy().T, expected, rtol=1e-4, atol=1e-6)


class WithJax(NamedTuple):
    """JAX's training after some calls, and what was seen on the way."""

    training: Any
    batch: Examples
    accuracy: float
    """Before the first call."""
    loss: float
    """Of the first."""
    addresses: list[list[int]]
    """Of the arrays of parameters and state, after each call."""


@pytest.fixture(scope="module")
def with_jax() -> WithJax:
    import jax

    from oneadam.cli.jax_training import Training
    from oneadam.cli.recipe import Recipe

    digits = load()
    training = Training(Recipe(epochs=1, seed=3), digits)
    before = training.accuracy(digits.held_out)
    each = list(batches(digits.training, size=16, seed=3, epoch=1))[:6]
    losses, addresses = [], []
    for batch in each:
        losses.append(training.step(batch))
        leaves = jax.tree.leaves((training.optimizer.params, training.optimizer.state))
        addresses.append([leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.ndim])
    return WithJax(training, each[0], before, losses[0], addresses)


@NEEDS["jax"]
def test_the_network_of_jax_is_that_of_numpy(with_jax):
    import jax
    import jax.numpy as jnp

    from oneadam.cli.jax_training import _loss

    parameters = initial_parameters(3)
    loss, gradients = loss_and_gradients(parameters, with_jax.batch)
    assert with_jax.accuracy == accuracy(parameters, load().held_out)
    assert with_jax.loss == pytest.approx(loss, rel=1e-6)
    params = jax.tree.map(jnp.array, parameters)
    found = jax.grad(_loss)(params, *map(jnp.asarray, with_jax.batch))
    for layer, arrays in gradients.items():
        for name, expected in arrays.items():
            np.testing.assert_allclose(found[layer][name], expected, rtol=1e-4, atol=1e-6)


@NEEDS["jax"]
def test_jax_writes_parameters_and_state_in_place_and_compiles_one_step(with_jax):
    first, *others = with_jax.addresses
    # Parameters, two moments, averages and accumulators, and counters.
    assert len(first) > 5 * 4
    assert len(others) == 5
    assert all(addresses == first for addresses in others)
    assert with_jax.training.optimizer._call._cache_size() == 1


@NEEDS["jax"]
def test_the_weights_of_jax_hold_their_averages_for_a_block(with_jax):
    import jax

    def fail_within() -> None:
        with optimizer.averaged():
            jax.tree.map(np.testing.assert_array_equal, optimizer.params, optimizer.state.average)
            assert (trained["hidden"]["kernel"] != optimizer.params["hidden"]["kernel"]).any()
            raise RuntimeError

    optimizer = with_jax.training.optimizer
    trained = optimizer.params
    with pytest.raises(RuntimeError):
        fail_within()
    assert optimizer.params is trained


def test_killed_beside_numpy_it_resumes_bit_for_bit(beside, tmp_path):
    options = ("--framework", beside.framework, "--epochs", 4, "--seed", 7, "--out", tmp_path)
    with started(*options) as process:
        while process.stdout.readline() != f"{TITLES[beside.framework]}\n":
            assert process.poll() is None
        # The heading, and the line of the first epoch.
        assert process.stdout.readline()
        assert process.stdout.readline()
        process.kill()
    assert 5 <= epochs_done(tmp_path) <= 8
    # The run's own frameworks are found again.
    assert run("--resume", "--out", tmp_path).returncode == 0
    assert_same_outcome(tmp_path, beside.folder, beside.files)


@pytest.mark.usefixtures("threads")
def test_a_framework_may_join_a_finished_run(finished, beside, tmp_path):
    (tmp_path / PROGRESS).write_bytes((finished / PROGRESS).read_bytes())
    said = invoke("--resume", "--framework", beside.framework, "--out", tmp_path)
    assert f"after epoch 4 of 4 NumPy, 0 of 4 {TITLES[beside.framework]}" in said
    assert_same_outcome(tmp_path, beside.folder, beside.files)


OF_ANOTHER = {
    "torch": [
        (b"hidden.weight", b"latent.weight", ["latent.weight"]),
        (b"hidden.bias/step", b"hidden.bias/slip", ["hidden.bias", "slip", "another optimizer"]),
    ],
    "jax": [
        (b"jax/weights/hidden", b"jax/weights/latent", ["weights/latent/kernel"]),
        (
            b"jax/optimizer/hidden/bias/velocity",
            b"jax/optimizer/hidden/bias/velocita",
            ["optimizer/hidden/bias/velocita", "network or optimizer"],
        ),
    ],
}
"""What is replaced in the file by what, and what is then said."""


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [0, 1], ids=["of another network", "of another optimizer"])
def test_a_run_that_does_not_fit_is_refused(beside, tmp_path, number):
    before, after, named = OF_ANOTHER[beside.framework][number]
    whole = (beside.folder / PROGRESS).read_bytes()
    damaged = whole.replace(before, after)
    assert damaged != whole
    (tmp_path / PROGRESS).write_bytes(damaged)
    message = refusal("--resume", "--out", tmp_path)
    assert "cannot be continued" in message
    assert all(name in message for name in named)
    assert (tmp_path / PROGRESS).read_bytes() == damaged


def test_the_portable_checkpoints_of_all_frameworks_say_the_same(beside):
    """Each has its framework's names and shapes; torch's kernels are transposed."""
    numpys, others = (
        load_file(beside.folder / name)
        for name in ("optimizer.safetensors", f"optimizer-{beside.framework}.safetensors")
    )
    is_torch = beside.framework == "torch"
    spelled = {"/kernel": ".weight", "/bias": ".bias"} if is_torch else {}
    renamed = {}
    for name in numpys:
        new = name
        for before, after in spelled.items():
            new = new.replace(before, after)
        renamed[new] = name
    assert renamed.keys() == others.keys()
    assert any(".weight" in name for name in others) == is_torch
    for name, value in others.items():
        other = numpys[renamed[name]]
        scale = float(np.abs(other).max(initial=1e-30))
        found = value.T if is_torch else value
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-3 * scale, err_msg=name)


@NEEDS["torch"]
@NEEDS["jax"]
@pytest.mark.usefixtures("threads")
def test_all_frameworks_are_drawn_in_one_picture(finished, tmp_path):
    (tmp_path / PROGRESS).write_bytes((finished / PROGRESS).read_bytes())
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oneadam.cli.picture.draw", lambda path, histories: drawn.append(histories))
        invoke("--resume", "--framework", "jax", "--framework", "torch", "--out", tmp_path)
    (histories,) = drawn
    assert {name: len(epochs) for name, epochs in histories.items()} == {
        "NumPy": 4, "PyTorch": 4, "JAX": 4,
    }  # fmt: skip


def test_an_unknown_framework_is_refused(tmp_path):
    message = refusal("--framework", "abacus", "--out", tmp_path / "none")
    assert "received abacus" in message
    assert not (tmp_path / "none").exists()


def as_if_of_keras(folder: Path, finished: Path, epochs: int = 4) -> None:
    """Have a folder say that Keras on TensorFlow has come as far, with NumPy's numbers."""
    saved = progress.read(finished / PROGRESS)
    kept = saved.runs["numpy"]
    runs = {**saved.runs, "keras-tensorflow": progress.Run(kept.history[:epochs], kept.tensors)}
    progress.write(folder / PROGRESS, saved._replace(runs=runs))


def test_what_another_backend_of_keras_has_finished_stands_beside_the_rest(finished, tmp_path):
    as_if_of_keras(tmp_path, finished)
    before = content(tmp_path / PROGRESS)
    with pytest.MonkeyPatch.context() as patch:
        # Neither loaded nor asked for.
        patch.setattr("oneadam.cli.demo.find_spec", lambda name: name == "numpy" or None)
        said = invoke("--resume", "--out", tmp_path)
    rows = [line.split()[-3:] for line in said.splitlines() if "NumPy and Keras on" in line]
    assert rows == [["0.0e+00"] * 3]
    assert content(tmp_path / PROGRESS) == before
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_an_unfinished_run_of_another_backend_of_keras_comes_first(finished, tmp_path):
    as_if_of_keras(tmp_path, finished, epochs=3)
    message = refusal("--resume", "--framework", "keras", "--backend", "jax", "--out", tmp_path)
    assert "--resume --framework keras --backend tensorflow" in message


def test_a_backend_is_for_keras(tmp_path):
    for options in ((), ("--framework", "torch")):
        message = refusal(*options, "--backend", "jax", "--out", tmp_path / "none")
        assert "without --framework keras" in message
    assert "received abacus" in refusal("--framework", "keras", "--backend", "abacus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "openvino")
        message = refusal("--framework", "keras", "--out", tmp_path / "none")
    assert "KERAS_BACKEND must be" in message
    assert "received openvino" in message
    assert not (tmp_path / "none").exists()


def test_keras_runs_on_what_it_is_configured_for_or_what_there_is(tmp_path, monkeypatch):
    def chosen(*installed: str) -> str:
        return configured_backend(lambda name: name in installed)

    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert chosen("torch", "jax") == "jax"
    for written, found in (('{"backend": "torch"}', "torch"), ("[]", "jax"), ("{", "jax")):
        (tmp_path / "keras.json").write_text(written)
        assert chosen("torch", "jax") == found
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')
    assert chosen("torch") == "torch"
    assert chosen() == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert chosen("torch") == "jax"
    backend = SimpleNamespace(backend=lambda: "torch")
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(backend=backend))
    assert chosen("jax") == "torch"


@pytest.mark.parametrize(
    ("options", "missing", "extras"),
    [
        (("torch",), "torch", "'oneadam[cli,torch]'"),
        (("jax",), "jax", "'oneadam[cli,jax]'"),
        (("jax",), "optax", "'oneadam[cli,jax]'"),
        (("keras", "--backend", "jax"), "keras", "'oneadam[cli,keras,jax]'"),
        (("keras", "--backend", "torch"), "torch", "'oneadam[cli,keras,torch]'"),
        (("keras", "--backend", "tensorflow"), "tensorflow", "'oneadam[cli,keras]' tensorflow"),
    ],
)
def test_without_a_framework_the_command_works_and_names_the_extra(
    tmp_path, monkeypatch, options, missing, extras
):
    monkeypatch.setattr(
        "oneadam.cli.demo.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    message = refusal("--framework", *options, "--out", tmp_path / "none")
    assert f"{' '.join(options)} needs " in message
    assert missing in message.split(" needs ")[1].split(": python -m pip")[0]
    assert f"python -m pip install {extras}\n" in message
    assert not (tmp_path / "none").exists()
    invoke("--framework", "numpy", "--epochs", 1, "--out", tmp_path / "some")
    assert {path.name for path in (tmp_path / "some").iterdir()} == FILES


def test_training_with_numpy_loads_no_other_framework(tmp_path):
    code = (
        "import sys; from oneadam.cli.app import app\n"
        f"app(['demo', '--epochs', '1', '--out', {str(tmp_path)!r}], standalone_mode=False)\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'jax', 'optax', 'keras')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env=environment()).returncode == 0
    )


def test_help_loads_neither_framework_nor_compiler():
    code = (
        "import sys; from oneadam.cli.app import app\n"
        "app(['demo', '--help'], standalone_mode=False)\n"
        "sys.exit(any(name in sys.modules for name in "
        "('numba', 'sklearn', 'torch', 'jax', 'keras', 'matplotlib')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env=environment()).returncode == 0
    )


def test_without_the_extra_the_command_says_what_to_install():
    code = (
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "from oneadam.cli import main; main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "python -m pip install 'oneadam[cli]'" in process.stderr
    assert "typer, rich, matplotlib, scikit-learn" in process.stderr


def a_run(names: dict[str, str], axes: tuple[int, ...] = (0, 1), more: float = 0.0) -> Any:
    """A finished run with a kernel of zeros and a one."""
    kernel = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, more]], np.float32).transpose(axes)
    epochs = [Epoch(loss, 0.5, 0.5, 0.1, 1.0) for loss in (4.0, 2.0 + more)]
    average = f"optimizer/{names['kernel']}/average"
    tensors = {f"weights/{names['kernel']}": kernel, average: kernel * 2,
               f"optimizer/{names['kernel']}/momentum": kernel + 7 * more}  # fmt: skip
    return progress.Run(epochs, tensors)


def test_runs_are_compared_by_their_largest_differences():
    plain, keras = {"kernel": "output/kernel"}, {"kernel": "digits/output/kernel"}
    one = a_run(plain)
    assert between(one, a_run(keras)) == (0, 0, 0)
    assert between(one, a_run({"kernel": "output.weight"}, (1, 0))) == (0, 0, 0)
    far, farther = a_run(keras, more=0.25), a_run(keras, more=-0.5)
    assert between(one, far) == (0.125, 0.25, 0.25)
    assert among([one, far, farther]) == between(far, farther) == (0.75 / 2.25, 0.75, 0.75)
    with pytest.raises(ValueError, match="cannot be compared"):
        between(one, a_run({"kernel": "hidden/kernel"}))


def test_gradients_agree_with_finite_differences():
    generator = np.random.default_rng(0)
    parameters = {
        layer: {name: value.astype(np.float64) for name, value in arrays.items()}
        for layer, arrays in initial_parameters(1).items()
    }
    parameters["hidden"]["bias"] += generator.normal(0, 0.1, 128)
    examples = Examples(generator.uniform(0, 1, (5, PIXELS)), generator.integers(0, CLASSES, 5))
    _, gradients = loss_and_gradients(parameters, examples)
    for layer, arrays in parameters.items():
        for name, value in arrays.items():
            direction = generator.normal(size=value.shape)
            step = 1e-6 * direction
            value += step
            above, _ = loss_and_gradients(parameters, examples)
            value -= 2 * step
            below, _ = loss_and_gradients(parameters, examples)
            value += step
            slope = (above - below) / 2e-6
            expected = float((gradients[layer][name] * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9), f"{layer}/{name}"


def test_every_epoch_sees_every_example_at_most_once_in_an_order_of_its_own():
    training, held_out = load()
    assert (len(training.labels), len(held_out.labels)) == (1437, 360)
    numbered = Examples(training.images, np.arange(len(training.labels)))
    first, again, second = (
        np.concatenate([batch.labels for batch in batches(numbered, size=16, seed=0, epoch=epoch)])
        for epoch in (1, 1, 2)
    )
    assert len(set(first)) == len(first) == 1437 // 16 * 16
    assert (first == again).all()
    assert (first != second).any()


def test_the_untrained_network_guesses():
    assert accuracy(initial_parameters(0), load().held_out) < 0.3
