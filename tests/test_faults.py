"""The checks are held to account: they pass a correct optimizer and reject each wrong one."""

from __future__ import annotations

from dataclasses import dataclass

import faults
import pytest
from conformance import ConformanceError, check, run
from faults import Reference, ReferenceLossScale
from hypothesis import given, settings
from scenarios import (
    Assign,
    ByCalls,
    Call,
    Dial,
    Finalize,
    Flush,
    Gradient,
    Scenario,
    Variable,
    constant,
    drawn,
    scenarios,
)

G = Gradient()
NAN = Gradient(poison=float("nan"))
ACCUMULATING = {"gradient_accumulation_steps": 2}


@dataclass(frozen=True)
class Case:
    """A wrong optimizer and a scenario that a correct one passes."""

    wrong: type
    scenario: Scenario

    def __str__(self) -> str:
        return self.wrong.__name__


def two(*calls: tuple[Gradient | None, Gradient | None]) -> tuple[Call, ...]:
    return tuple(Call(gradients) for gradients in calls)


ONE_BF16 = (Variable("kernel", (8,), "bfloat16"),)
CASES = (
    Case(faults.NoBiasCorrection, constant(calls=1)),
    Case(
        faults.AmsgradIgnored,
        constant({"amsgrad": True}, steps=two((G, G), (Gradient(size=0.1),) * 2)),
    ),
    Case(faults.AmsgradOnCorrectedVelocity, constant({"amsgrad": True}, calls=2)),
    Case(faults.NanSwallowedByMaximum, constant({"amsgrad": True}, steps=two((NAN, G), (G, G)))),
    Case(faults.EpsilonInsideRoot, constant({"epsilon": 1e-3}, calls=1)),
    Case(faults.EpsilonOfAlgorithmOne, constant({"epsilon": 1e-3}, calls=1)),
    Case(faults.EpsilonHatAlways, constant({"epsilon": 1e-3, "epsilon_hat": False}, calls=1)),
    Case(faults.DecayCoupled, constant({"weight_decay": 0.1}, calls=2)),
    Case(
        faults.DecayAfterTheStep,
        constant({"weight_decay": 0.1, "learning_rate": 0.05}, calls=2),
    ),
    Case(faults.DecayWithoutLearningRate, constant({"weight_decay": 0.01}, calls=1)),
    Case(faults.DecayOfExcluded, constant({"weight_decay": 0.1}, calls=1, exclude=("bias",))),
    Case(
        faults.EmaOnEveryCall,
        constant({**ACCUMULATING, "use_ema": True, "learning_rate": 0.1}, calls=5),
    ),
    Case(faults.EmaFromZero, constant({"use_ema": True}, calls=1)),
    Case(
        faults.WeightsOfTheAverageRounded,
        constant({"use_ema": True, "ema_overwrite_frequency": 100}, calls=1000),
    ),
    Case(
        faults.OverwriteCountedInCalls,
        constant({**ACCUMULATING, "use_ema": True, "ema_overwrite_frequency": 2}, calls=6),
    ),
    Case(
        faults.ClipBeforeAveraging,
        constant(
            {**ACCUMULATING, "clipnorm": 1.0},
            steps=two((Gradient(size=9.0),) * 2, (Gradient(size=0.1),) * 2),
        ),
    ),
    Case(faults.GlobalNormPerVariable, constant({"global_clipnorm": 0.5}, calls=1)),
    Case(faults.NormOverAllVariables, constant({"clipnorm": 0.5}, calls=1)),
    Case(
        faults.NormInFloat32,
        constant({"global_clipnorm": 1.0}, calls=1, gradient=Gradient(kind="wide")),
    ),
    Case(faults.NanSwallowedByClip, constant({"clipvalue": 0.5}, calls=1, gradient=NAN)),
    Case(faults.BetaLost, constant({"beta_2": 0.99}, calls=1)),
    Case(faults.ResetByMultiplying, constant(ACCUMULATING, steps=two((NAN, G), (G, G)))),
    Case(faults.PowersInFloat32, constant({"beta_1": 0.9999999}, calls=2)),
    Case(
        faults.MeanOverGradientsSeen,
        constant({**ACCUMULATING, "epsilon": 0.1}, steps=two((G, None), (G, G))),
    ),
    Case(faults.CountedGlobally, constant(steps=two((G, None), (G, None), (G, G)))),
    Case(
        faults.ScheduleSeesUpdates,
        constant({**ACCUMULATING, "learning_rate": ByCalls(0.1)}, calls=4),
    ),
    Case(
        faults.LossScaleFactorNotUndone,
        constant({"loss_scale_factor": 1024.0, "epsilon": 0.1}, calls=1),
    ),
    Case(
        faults.NonfinitePropagatesAlways,
        constant({"on_nonfinite": "skip"}, steps=two((G, G), (NAN, G), (G, G))),
    ),
    Case(
        faults.MomentsInTheNarrowDtype,
        constant(calls=1, variables=ONE_BF16, gradient=Gradient("bfloat16")),
    ),
    Case(
        faults.ValueTruncated,
        constant({"learning_rate": 0.03}, calls=9, variables=ONE_BF16),
    ),
    Case(
        faults.DynamicScaleNotUndone,
        constant(calls=1, loss_scale={"initial_scale": 8.0}),
    ),
    Case(
        faults.DynamicScaleWithoutFloor,
        constant(calls=2, gradient=NAN, loss_scale={"initial_scale": 2.0}),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_correct_passes_and_wrong_is_rejected(case: Case) -> None:
    taken_through(Reference, ReferenceLossScale, case.scenario)

    pair = (case.wrong, ReferenceLossScale)
    if issubclass(case.wrong, ReferenceLossScale):
        pair = (Reference, case.wrong)
    with pytest.raises(ConformanceError):
        taken_through(*pair, case.scenario)


def taken_through(make: type, wrap: type, scenario: Scenario) -> None:
    run(make, scenario, wrap=wrap, compare_at=lambda index: index < 20 or index % 100 == 0)


def test_every_fault_has_a_case() -> None:
    correct = {Reference, ReferenceLossScale}
    written = {
        kind
        for kind in vars(faults).values()
        if isinstance(kind, type) and issubclass(kind, tuple(correct)) and kind not in correct
    }
    assert written == {case.wrong for case in CASES}


def test_every_fault_overrides_one_method() -> None:
    for case in CASES:
        own = [name for name in vars(case.wrong) if not name.startswith("__")]
        assert len(own) == 1, case.wrong


# The reference is judged to judge the tolerances; the doors get the whole budget.
SOME = settings(max_examples=max(settings.default.max_examples // 5, 10))


@SOME
@given(scenarios())
def test_correct_passes_whatever_is_drawn(scenario: Scenario) -> None:
    check(Reference, scenario)


@SOME
@given(scenarios(loss_scale=True))
def test_correct_passes_whatever_is_drawn_under_a_dynamic_loss_scale(scenario: Scenario) -> None:
    check(Reference, scenario, wrap=ReferenceLossScale)


def test_a_drawn_failure_is_reported_with_a_simple_scenario() -> None:
    failing = next(seed for seed in range(100) if rejects(faults.BetaLost, drawn(seed)))
    with pytest.raises(ConformanceError, match=r"(?s)element.*in Scenario") as caught:
        check(faults.BetaLost, drawn(failing))
    assert str(caught.value).count("Call(gradients") == 1


def rejects(wrong: type, scenario: Scenario) -> bool:
    try:
        run(wrong, scenario)
    except ConformanceError:
        return True
    return False


def test_correct_passes_with_everything_at_once() -> None:
    variables = tuple(
        Variable(f"layer/{dtype}", shape, dtype, layout)
        for dtype, shape, layout in (
            ("float32", (2, 3), "strided"),
            ("float64", (), "C"),
            ("bfloat16", (4,), "C"),
            ("float16", (0, 2), "C"),
        )
    )
    call = Call((G, Gradient("float64"), None, Gradient("float16")))
    steps = (
        call,
        call,
        Assign(Dial((0.1, 0.01))),
        Call((G,) * 4),
        Flush(),
        Finalize((0, 2)),
        Call((None, None, G, None)),
        call,
    )
    config = {
        "beta_1": Dial((0.9, 0.8)),
        "amsgrad": True,
        "weight_decay": 0.1,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "loss_scale_factor": 8.0,
        "gradient_accumulation_steps": 2,
    }
    run(
        Reference,
        Scenario(variables, steps, config, exclude=("float64",), container="nested"),
    )


class WritesToGradients(Reference):
    def apply(self, gradients):  # type: ignore[no-untyped-def]
        super().apply(gradients)
        for _, gradient in faults.leaves(gradients):
            gradient *= 2.0


class UpdatesCopies(Reference):
    def build(self, variables):  # type: ignore[no-untyped-def]
        super().build({key: array.copy() for key, array in faults.leaves(variables)})


class ForgetsAStateEntry(Reference):
    def state_dict(self):  # type: ignore[no-untyped-def]
        state = super().state_dict()
        del state["kernel/velocity"]
        return state


class Refuses(Reference):
    def apply(self, gradients):  # type: ignore[no-untyped-def]
        raise ValueError("no")


@pytest.mark.parametrize("wrong", [WritesToGradients, UpdatesCopies, ForgetsAStateEntry, Refuses])
def test_bad_manners_are_rejected(wrong: type) -> None:
    with pytest.raises(ConformanceError):
        run(wrong, constant())


def test_an_error_names_tensor_element_values_and_distance() -> None:
    message = r"momentum of 'kernel' \(float32\), element \d.*spacings off, 4 allowed"
    with pytest.raises(ConformanceError, match=message):
        run(WrongMomentum, constant(calls=1))


class WrongMomentum(Reference):
    def moments(self, key, gradient):  # type: ignore[no-untyped-def]
        return super().moments(key, gradient * 1.0001)
