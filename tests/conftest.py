"""What holds for every test: NaN in fresh memory, no silent skips in CI, Hypothesis's budget."""

import os
import signal
from collections.abc import Generator, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Their asserts are the tests' asserts.
pytest.register_assert_rewrite("oracle", "conformance", "scenarios", "faults", "demos", "surface")

if "KERAS_BACKEND" not in os.environ:
    # Keras runs on one backend in each process: `make test-keras-jax` and so on.
    collect_ignore = ["keras"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells make what they start in the background ignore Ctrl-C, which is under test here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine is slow for reasons that are not the test's.
_COMMON = settings(
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", _COMMON, max_examples=50)
settings.register_profile("ci", _COMMON, max_examples=500)
settings.register_profile("thorough", _COMMON, max_examples=5000)
# pytest --hypothesis-profile=quick chooses another.
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: "whatever_is_drawn" not in item.name)


@pytest.fixture(scope="session", autouse=True)
def _fresh_memory_is_nan() -> Iterator[None]:
    """Make code that reads what it never wrote fail, rather than find a convenient zero."""
    real_empty, real_empty_like = np.empty, np.empty_like

    def empty(*args, **kwargs):
        return _spoilt(real_empty(*args, **kwargs))

    def empty_like(*args, **kwargs):
        return _spoilt(real_empty_like(*args, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", empty)
        patch.setattr(np, "empty_like", empty_like)
        yield


def _spoilt(array: np.ndarray) -> np.ndarray:
    # ml_dtypes' bfloat16 is of kind V.
    if array.dtype.kind in "fc" or array.dtype.name == "bfloat16":
        array.fill(np.nan)
    return array


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _missing_framework_fails((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _missing_framework_fails((yield))


def _missing_framework_fails(report):
    """Turn a skip by pytest.importorskip into a failure where CI has to have everything."""
    if os.environ.get("CI") == "true" and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "could not import" in reason:
            report.outcome = "failed"
            report.longrepr = f"{reason}\nCI must have every framework: nothing may be skipped."
    return report
