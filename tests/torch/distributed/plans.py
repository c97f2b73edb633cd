"""What each world runs, and with which arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worlds import Job

CALLS = 7
"""Three windows of two calls, and one that is half full."""

# Large gradients alternate with small ones, so that clipping acts in some updates only.
RECIPE: dict[str, Any] = {
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "global_clipnorm": 20.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "gradient_accumulation_steps": 2,
}
EACH: dict[str, Any] = {
    **RECIPE,
    "global_clipnorm": None,
    "clipnorm": 5.0,
    "amsgrad": True,
    "ema_overwrite_frequency": 2,
}
VALUES: dict[str, Any] = {**RECIPE, "global_clipnorm": None, "clipvalue": 0.3}
PLAIN: dict[str, Any] = {"learning_rate": 0.05, "weight_decay": 0.1, "epsilon_hat": False}
SKIPPING: dict[str, Any] = {**RECIPE, "on_nonfinite": "skip"}
RAISING: dict[str, Any] = {**RECIPE, "on_nonfinite": "raise"}

SAVED_AFTER = 5
RESUMED_UNTIL = 9
CHECKPOINTED = {**RECIPE, "amsgrad": True}

LOST = "lost"
"""The world that loses a rank."""
RESUMES_FROM: dict[int | str, tuple[int | str, ...]] = {1: (2,), 3: (2, LOST)}
"""The worlds whose checkpoints a world needs."""
# In every second call gradients are clipped, which is when the ranks wait for each other.
LOST_IN, CHECKPOINT_EVERY = 6, 3

COUNTED: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "values": VALUES,
    "global": {"global_clipnorm": 1.0},
    "each": {"clipnorm": 1.0},
    "recipe": RECIPE,
    "skipping": {"on_nonfinite": "skip"},
    "global and skipping": {"global_clipnorm": 1.0, "on_nonfinite": "skip"},
}
NORMS = {name: COUNTED[name] for name in ("global", "each")}


def ranks(which: int | str) -> int:
    """How many ranks a world has."""
    return 3 if which == LOST else int(which)


def jobs(which: int | str, shared: Path) -> list[Job]:
    """The jobs of a world; `shared` is the folder in which all worlds have theirs."""
    folder, size = str(shared), ranks(which)
    if which == LOST:
        return [interruption(shared / LOST, "is killed")]
    if size == 1:
        return _resumptions(folder, plain=False) + _resumptions(folder, plain=True)
    if size == 4:
        return _squares()
    return [
        *_trainings(),
        *_agreements(),
        *_countings(size),
        _uninterrupted(),
        *(_savings(folder) if size == 2 else [_after_loss(shared / LOST)]),
        *_resumptions(folder, plain=False),
        *_divisions(),
    ]


def training(name: str, run: str, config: dict[str, Any], **options: Any) -> Job:
    return Job(name, run, {"config": config, "calls": CALLS, **options})


def _trainings() -> list[Job]:
    return [
        training("sharded", "jobs_sharded:sharded", RECIPE),
        training("sharded, each", "jobs_sharded:sharded", EACH),
        training("sharded, values", "jobs_sharded:sharded", VALUES),
        training("sharded, plain", "jobs_sharded:sharded", PLAIN),
        training("bfloat16", "jobs_sharded:sharded", RECIPE, dtype="bfloat16"),
        training("computed in bfloat16", "jobs_sharded:sharded", RECIPE, narrow=True),
        training("mixed", "jobs_sharded:mixed", RECIPE),
        training("mixed, each", "jobs_sharded:mixed", EACH),
        training("closed", "jobs_sharded:closed", RECIPE),
        training("misplaced", "jobs_sharded:misplaced", RECIPE),
        training("by rank", "jobs_sharded:by_rank", RECIPE),
        training("by rank, each", "jobs_sharded:by_rank", EACH),
        training("by rank, plain", "jobs_sharded:by_rank", PLAIN),
        training("tensor parallel", "jobs_parallel:tensor_parallel", RECIPE),
        training("tensor parallel, each", "jobs_parallel:tensor_parallel", EACH),
        training("sequence parallel", "jobs_parallel:sequence_parallel", RECIPE),
        training("replicated", "jobs_replicated:replicated", RECIPE),
        training("replicated, each", "jobs_replicated:replicated", EACH),
    ]


def _agreements() -> list[Job]:
    return [
        training("skipped", "jobs_agreement:skipped", SKIPPING),
        training("skipped, mixed", "jobs_agreement:skipped", SKIPPING, mixed=True),
        training("raised", "jobs_agreement:raised", RAISING),
        training("scaled by torch", "jobs_agreement:scaled", RECIPE, by="torch"),
        training("unscaled by torch", "jobs_agreement:scaled", RECIPE, by="torch", unscale=True),
        training("scaled by us", "jobs_agreement:scaled", RECIPE, by="ours"),
        training("scaled in parts", "jobs_agreement:partitioned", RECIPE, unscale=False),
        training("unscaled in parts", "jobs_agreement:partitioned", RECIPE, unscale=True),
        Job("warming up", "jobs_agreement:warming_up", {"calls": CALLS}),
    ]


def _divisions() -> list[Job]:
    return [
        training("redundancy-free", "jobs_partitioned:redundancy_free", RECIPE),
        training("redundancy-free, each", "jobs_partitioned:redundancy_free", EACH),
        training(
            "redundancy-free, resumed", "jobs_partitioned:redundancy_free", RECIPE, resumed_at=3
        ),
        training("by hand", "jobs_partitioned:by_hand", RECIPE),
        training("by hand, each", "jobs_partitioned:by_hand", EACH),
        training("by hand, ungrouped", "jobs_partitioned:by_hand", RECIPE, grouped=False),
        Job(
            "without parameters",
            "jobs_partitioned:without_parameters",
            {"config": {"learning_rate": 0.1, "global_clipnorm": 1.0, "on_nonfinite": "skip"}},
        ),
    ]


def _countings(size: int) -> list[Job]:
    if size != 2:
        return []
    return [
        Job("counted, known", "jobs_counting:known"),
        Job("counted, line", "jobs_counting:on_a_line", {"configs": COUNTED}),
        Job("counted, partly", "jobs_counting:partly_on_a_line", {"configs": COUNTED}),
    ]


def _squares() -> list[Job]:
    return [
        training("square", "jobs_parallel:two_dimensional", RECIPE),
        training("square, each", "jobs_parallel:two_dimensional", EACH),
        training("hybrid", "jobs_sharded:hybrid", RECIPE),
        training("hybrid, each", "jobs_sharded:hybrid", EACH),
        Job("counted, square", "jobs_counting:in_a_square", {"configs": NORMS}),
        Job("counted, replicas", "jobs_counting:with_replicas", {"configs": NORMS}),
    ]


def _uninterrupted() -> Job:
    options = {"config": CHECKPOINTED, "calls": RESUMED_UNTIL}
    return Job("uninterrupted", "jobs_checkpoint:uninterrupted", options)


def _after_loss(folder: Path) -> Job:
    checkpoint = folder / str(CHECKPOINT_EVERY)
    options = {"config": CHECKPOINTED, "folder": str(checkpoint)}
    return resumption("resumed after a loss", "nested", CHECKPOINT_EVERY, options)


def interruption(folder: Path, how: str) -> Job:
    """Rank 1 is lost in the last call."""
    options = {"config": CHECKPOINTED, "calls": LOST_IN, "every": CHECKPOINT_EVERY}
    return Job(
        "interrupted",
        "jobs_killed:interrupted",
        {**options, "folder": str(folder), "how": how},
    )


def _savings(folder: str) -> list[Job]:
    return [
        Job(
            "saved",
            "jobs_checkpoint:saved",
            {"config": CHECKPOINTED, "calls": SAVED_AFTER, "folder": folder},
        ),
        training("scaled, saved", "jobs_checkpoint:scaled", RECIPE, folder=folder),
        Job(
            "unwritable",
            "jobs_checkpoint:unwritable",
            {"config": CHECKPOINTED, "calls": 1, "folder": folder},
        ),
    ]


WAYS = ("nested", "flat", "full", "from rank 0", "portable")


def _resumptions(folder: str, *, plain: bool) -> list[Job]:
    """`plain` is a model that is not sharded."""
    options = {"config": CHECKPOINTED, "folder": folder, "plain": plain}
    title = "resumed plainly" if plain else "resumed"
    return [resumption(f"{title}, {way}", way, SAVED_AFTER, options) for way in WAYS]


def resumption(name: str, way: str, first: int, options: dict[str, Any]) -> Job:
    return Job(
        name,
        "jobs_checkpoint:resumed",
        {**options, "calls": [first, RESUMED_UNTIL], "way": way},
    )


def config_of(name: str, size: int) -> dict[str, Any]:
    """The optimizer's arguments in the job of this name."""
    (job,) = [job for job in jobs(size, Path()) if job.name == name]
    config: dict[str, Any] = job.options["config"]
    return config
