"""What an installed oneadam must do with its required dependencies alone.

Run by the Python that it was installed for, outside of the source tree:
`python smoke.py [source tree]`.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import oneadam

FRAMEWORKS = ("torch", "jax", "keras", "tensorflow")
OPTIONAL = ("typer", "rich", "matplotlib", "sklearn")


def check_package() -> None:
    heavy = [name for name in (*FRAMEWORKS, "numba") if name in sys.modules]
    assert not heavy, f"import oneadam loads {heavy}"
    package = Path(oneadam.__file__).resolve().parent
    if len(sys.argv) > 1:
        assert Path(sys.argv[1]).resolve() not in package.parents, f"not the wheel: {package}"
    assert (package / "py.typed").is_file()
    distribution = importlib.metadata.distribution("oneadam")
    assert distribution.version == oneadam.__version__
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert any(file.name == "LICENSE" for file in distribution.files or ())


def check_training() -> None:
    import numpy as np

    from oneadam.numpy import Adam
    from oneadam.schedules import CosineDecay

    def fresh() -> tuple[dict[str, np.ndarray], Adam]:
        weights = {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
        optimizer = Adam(CosineDecay(0.1, 100), global_clipnorm=1.0, use_ema=True)
        optimizer.build(weights)
        return weights, optimizer

    gradients = {"kernel": np.full((3, 2), 0.01, np.float32), "bias": np.zeros(2, np.float32)}
    weights, optimizer = fresh()
    optimizer.apply(gradients)
    # The first step of Adam is the learning rate, whatever the size of the gradient.
    np.testing.assert_allclose(weights["kernel"], 0.9, rtol=1e-4)
    np.testing.assert_array_equal(weights["bias"], 0)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimizer.safetensors"
        optimizer.save(file)
        resumed_weights, resumed = fresh()
        resumed.load(file)
    for name, value in resumed_weights.items():
        value[...] = weights[name]
    for weight, step in ((weights, optimizer), (resumed_weights, resumed)):
        step.apply(gradients)
        assert step.iterations == 2, weight
    np.testing.assert_array_equal(resumed_weights["kernel"], weights["kernel"])


def check_command() -> None:
    command = Path(sysconfig.get_path("scripts")) / "oneadam"
    run = subprocess.run([command, "demo"], capture_output=True, text=True, check=False)
    if any(importlib.util.find_spec(module) is None for module in OPTIONAL):
        assert run.returncode == 1, run
        assert "pip install 'oneadam[cli]'" in run.stderr, run
    else:
        assert run.returncode == 0, run


if __name__ == "__main__":
    check_package()
    check_training()
    check_command()
    print(f"oneadam {oneadam.__version__} works as installed.")
