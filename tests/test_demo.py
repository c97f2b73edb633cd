"""`oneadam demo`: it trains, shows it, and survives being killed."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from oneadam.cli.app import app
from oneadam.cli.digits import Examples, batches, load
from oneadam.cli.network import CLASSES, PIXELS, accuracy, initial_parameters, loss_and_gradients

PROGRESS = "progress.safetensors"
FILES = {PROGRESS, "optimizer.safetensors", "training.png"}
# Colours and Typer's boxes would depend on where the tests run.
SETTINGS_OF_TERMINALS = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "COLUMNS")


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "oneadam.cli", "demo", *map(str, options)]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in SETTINGS_OF_TERMINALS}
    return {**kept, "TERM": "xterm-256color"}


def run(*options: object) -> subprocess.CompletedProcess[str]:
    """Run the command as its user does."""
    return subprocess.run(
        command(*options), capture_output=True, text=True, check=False, env=environment()
    )


def invoke(*options: object) -> str:
    """Run it within this process, which is faster, and return what it says."""
    result = CliRunner().invoke(app, ["demo", *map(str, options)])
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.output


def refusal(*options: object) -> str:
    """Return what a command says that must be refused."""
    result = CliRunner().invoke(app, ["demo", *map(str, options)])
    assert result.exit_code == 2, result
    assert isinstance(result.exception, SystemExit), result
    return result.output


def content(file: Path) -> object:
    """Everything in a file, to the bit; safetensors writes metadata in no particular order."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    with safe_open(file, "numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    return metadata, {
        name: (value.dtype, value.shape, value.tobytes()) for name, value in tensors.items()
    }


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
    last = load_file(tmp_path / PROGRESS)["history"][-1]
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
    _assert_same_outcome(tmp_path / "same", finished)
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
            print(f"killed after {_epochs_done(folder)} epochs")
        assert run(*options, "--resume", "--out", folder).returncode == 0
        _assert_same_outcome(folder, tmp_path / "whole")


def test_killed_between_two_epochs_it_resumes_bit_for_bit(finished, tmp_path):
    with _started("--epochs", 4, "--seed", 7, "--out", tmp_path) as process:
        # The heading, and the line of the first epoch.
        assert process.stdout.readline()
        assert process.stdout.readline()
        process.kill()
    assert 1 <= _epochs_done(tmp_path) <= 4
    # The run's own settings are found again.
    assert run("--resume", "--out", tmp_path).returncode == 0
    _assert_same_outcome(tmp_path, finished)


def _started(*options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True, env=environment())


def _kill(moments: random.Random, *options: object) -> None:
    """Kill a run some time after it has printed some of its lines, or none."""
    lines = moments.choice([0, 1, 2, 3, 4, 5])
    with _started(*options) as process:
        for _ in range(lines):
            process.stdout.readline()
        try:
            process.wait(moments.uniform(0, 0.05 if lines else 2))
        except subprocess.TimeoutExpired:
            process.kill()


def _epochs_done(folder: Path) -> int:
    """Read the file of a killed run, which must be whole; -1 before there is one."""
    file = folder / PROGRESS
    return len(load_file(file)["history"]) if file.exists() else -1


def _assert_same_outcome(folder: Path, expected: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    for name in FILES:
        assert content(folder / name) == content(expected / name), name


def test_resuming_a_finished_run_shows_its_table_again(finished):
    before = {name: content(finished / name) for name in FILES}
    said = invoke("--resume", "--out", finished)
    assert "finished all its 4 epochs" in said
    assert "held-out accuracy" in said
    assert {name: content(finished / name) for name in FILES} == before


def test_resuming_where_nothing_began_starts_and_says_so(finished, tmp_path):
    said = invoke("--resume", "--epochs", 4, "--seed", 7, "--out", tmp_path)
    assert "starts at epoch 1" in said
    _assert_same_outcome(tmp_path, finished)


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


def test_help_loads_neither_framework_nor_compiler():
    code = (
        "import sys; from oneadam.cli.app import app\n"
        "app(['demo', '--help'], standalone_mode=False)\n"
        "sys.exit(any(name in sys.modules for name in ('numba', 'sklearn', 'matplotlib')))"
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
