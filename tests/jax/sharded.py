"""What a process with eight devices finds out about sharded steps, one question after the other.

A question is a line of JSON, `[name, arguments]`; the answer is one too, `[is_right, answer]`.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import FORMATS
from tolerances import spacing

from oneadam import jax as door

Tree = Any
Facts = dict[str, Any]

MESHES = {"rows": ((8,), ("fsdp",)), "grid": ((4, 2), ("data", "model"))}
WHOLE = {"gain": ((5,), P(), "float32")}
LAYOUTS: dict[str, dict[str, tuple[tuple[int, ...], Any, str]]] = {
    # As FSDP does: rows, over all devices.
    "rows": {
        "kernel": ((16, 25), P("fsdp"), "float32"),
        "table": ((48, 9), P("fsdp"), "bfloat16"),
        "bias": ((416,), P("fsdp"), "float32"),
        "temperature": ((), P(), "float32"),
        **WHOLE,
    },
    # As tensor parallelism does: columns or rows over some devices, copies on the others.
    "grid": {
        "columns": ((25, 16), P(None, "model"), "float32"),
        "both": ((32, 14), P("data", "model"), "float32"),
        "table": ((48, 9), P(("data", "model")), "bfloat16"),
        **WHOLE,
    },
}
"""Shape, sharding and dtype of each parameter; what is sharded has 400 elements or more."""
COPIED = ("temperature", *WHOLE)

CALLS = 6

_events: Counter[str] = Counter()


def _heard(event: str, *_: Any, **__: Any) -> None:
    _events[event] += 1


jax.monitoring.register_event_duration_secs_listener(_heard)


@contextmanager
def work() -> Iterator[Counter[str]]:
    """Counts what is traced and compiled meanwhile."""
    found: Counter[str] = Counter()
    before = Counter(_events)
    yield found
    for event, count in (_events - before).items():
        for kind in ("trace", "backend_compile"):
            if event.endswith(f"{kind}_duration"):
                found[kind] += count


def mesh_of(name: str, kind: AxisType = AxisType.Auto, count: int = 8) -> Mesh:
    shape, axes = MESHES[name]
    shape = (shape[0] * count // 8, *shape[1:])
    return jax.make_mesh(shape, axes, (kind,) * len(axes), devices=jax.devices()[:count])


def values(layout: str, seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    """Arrays for the parameters of a layout, the same in every order of asking."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.normal(size=shape) * size, jnp.dtype(dtype))
        for name, (shape, _, dtype) in LAYOUTS[layout].items()
    }


def placed(layout: str, arrays: Tree, mesh: Mesh | None) -> Tree:
    """Arrays on a mesh, or on one device."""
    if mesh is None:
        return jax.tree.map(jnp.array, arrays)
    specs = LAYOUTS[layout]
    return {
        name: jax.device_put(array, NamedSharding(mesh, specs[name][1]))
        for name, array in arrays.items()
    }


def made(config: Facts) -> Any:
    own = dict(config)
    scale = own.pop("loss_scale", None)
    transformation = door.adam(**{"learning_rate": 0.01, **own})
    return transformation if scale is None else door.loss_scale(transformation, **scale)


def outside(config: Facts) -> Any:
    """The same where JAX shows whole arrays."""
    return made({key: value for key, value in config.items() if key != "sharded_over"})


def stepping(transformation: Any, way: str = "step") -> Any:
    """A compiled step that writes in place; "update": with updates, as optax has it."""

    @partial(jax.jit, donate_argnums=(1, 2))
    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        if way == "step":
            return door.step(transformation, grads, state, params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def gradients(layout: str, calls: int, since: int = 0) -> list[Tree]:
    """Gradients of which some are clipped to a norm of 1 and some are not."""
    return [values(layout, 1 + n, 10.0 ** (n % 3 - 2)) for n in range(since, since + calls)]


def host(tree: Tree) -> Tree:
    """A copy that nothing can donate."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def shard_bytes(leaf: Any) -> int:
    return leaf.addressable_shards[0].data.nbytes


def unequal_copies(tree: Tree) -> list[str]:
    """The arrays of which two devices have different copies."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        by_place: dict[str, set[bytes]] = {}
        for shard in leaf.addressable_shards:
            by_place.setdefault(str(shard.index), set()).add(np.asarray(shard.data).tobytes())
        if any(len(copies) > 1 for copies in by_place.values()):
            found.append(jax.tree_util.keystr(path))
    return found


class Run:
    """Parameters, their state, and the magnitudes that both have reached.

    Args:
        layout: of the parameters.
        transformation: what steps.
        mesh: where; None: on one device.
        step: compiled already.
        leave_out: names of parameters.
    """

    def __init__(
        self,
        layout: str,
        transformation: Any,
        mesh: Mesh | None,
        step: Any = None,
        leave_out: Iterable[str] = (),
    ) -> None:
        self.left_out = set(leave_out)
        self.place: Callable[[Tree], Tree] = partial(placed, layout, mesh=mesh)
        self.params = self.place(self.of(values(layout, 0)))
        self.before = host(self.params)
        self.state = transformation.init(self.params)
        self.step = step or stepping(transformation)
        self.reached: Any = jax.tree.map(np.abs, host((self.params, self.state)))

    def of(self, tree: Tree) -> Tree:
        return {name: leaf for name, leaf in tree.items() if name not in self.left_out}

    def go_on(self, grads: Iterable[Tree]) -> None:
        for each in grads:
            taken = self.place(self.of(each))
            self.params, self.state = self.step(taken, self.state, self.params)
            now = jax.tree.map(np.abs, host((self.params, self.state)))
            self.reached = jax.tree.map(np.maximum, self.reached, now)

    def moved(self) -> bool:
        """Whether every parameter has changed everywhere."""
        after = host(self.params)
        return all((after[name] != array).mean() > 0.5 for name, array in self.before.items())

    def apart(self, other: Run) -> dict[str, float]:
        """How far two runs are apart, by dtype."""
        return apart((self.params, self.state), (other.params, other.state), self.reached)


@cache
def _reference(layout: str, config: str, left_out: tuple[str, ...], way: str) -> Run:
    transformation = made(json.loads(config))
    run = Run(layout, transformation, None, stepping(transformation, way), left_out)
    run.go_on(gradients(layout, CALLS))
    return run


def reference(layout: str, config: Facts, left_out: tuple[str, ...] = (), way: str = "step") -> Run:
    """A run on one device, finished."""
    own = {key: value for key, value in config.items() if key != "sharded_over"}
    return _reference(layout, json.dumps(own, sort_keys=True), left_out, way)


def apart(one: Tree, other: Tree, reached: Tree) -> dict[str, float]:
    """How far two trees are apart, in spacings of each dtype at the magnitudes reached."""
    worst: dict[str, float] = {}
    trees = [jax.tree.leaves(host(tree)) for tree in (one, other, reached)]
    for a, b, c in zip(*trees, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (a.shape, b.shape, a.dtype, b.dtype)
        name = a.dtype.name
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        unit = spacing(np.abs(c.astype(np.float64)), name) if name in FORMATS else 1.0
        worst[name] = max(worst.get(name, 0.0), float((difference / unit).max(initial=0.0)))
    return worst


def unlike(tree: Tree, params: Tree) -> list[str]:
    """The parts of a state that do not lie as their parameters, or as one copy per device."""
    mesh = next(iter(params.values())).sharding.mesh
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = getattr(path[-1], "key", None)
        wanted = params[key].sharding if key in params else NamedSharding(mesh, P())
        if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim):
            found.append(f"{jax.tree_util.keystr(path)}: {leaf.sharding}")
    return found


# What a compiled program does.

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "collective-broadcast",
               "reduce-scatter", "all-reduce", "ragged-all-to-all")  # fmt: skip


def program(text: str) -> Facts:
    """What a compiled program sends between devices, and its largest buffer."""
    found: Facts = {"reduced": 0, "all_reduces": 0, "always": 0, "others": []}
    is_entry = False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            is_entry = line.startswith("ENTRY")
        told = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z-]+)\(", line)
        if told is None:
            continue
        kind = told[2].removesuffix("-start")
        if kind == "all-reduce":
            found["all_reduces"] += 1
            found["always"] += is_entry
            found["reduced"] = max(found["reduced"], sum(sizes(told[1])))
        elif kind in COLLECTIVES:
            found["others"].append(kind)
    found["largest"] = max(sizes(text))
    return found


def sizes(text: str) -> list[int]:
    """The numbers of elements of all shapes in a text."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]", text)
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


def bad_programs() -> Facts:
    """What is found in programs that no step should be."""
    mesh = mesh_of("rows")
    rows, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    array = jax.device_put(np.ones((16, 25), np.float32), rows)
    programs: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
        "gathers": (lambda a, _: a + 1, whole),
        "reduces an array": (lambda a, _: a.sum(0), whole),
        "rolls": (lambda a, _: jnp.roll(a, 1, 0), rows),
        "reduces a number": (lambda a, _: a + a.sum(), rows),
        "nothing": (lambda a, _: a + 1, rows),
        "in a branch": (
            lambda a, is_open: jax.lax.cond(is_open, lambda: a + (a * a).sum(), lambda: a),
            rows,
        ),
    }
    return {
        name: program(jax.jit(f, out_shardings=out).lower(array, True).compile().as_text())
        for name, (f, out) in programs.items()
    }


def bad_runs() -> Facts:
    """What is found in arrays that differ, lie elsewhere, or need something compiled."""
    mesh = mesh_of("rows")
    tree = {"kernel": np.ones((16, 25), np.float32), "table": np.ones(8, jnp.bfloat16)}
    tree["count"] = np.zeros((), np.int32)
    others = {name: {**tree, name: tree[name].copy()} for name in tree}
    others["kernel"]["kernel"][3, 4] += np.float32(2.0**-23)
    others["table"]["table"][1] = 1.0 + 2.0**-7
    others["count"]["count"] += 1
    names = zip(("one spacing", "narrow", "count"), others.values(), strict=True)
    facts: Facts = {name: apart(tree, other, tree) for name, other in names}
    params = placed("rows", values("rows", 0), mesh)
    wrong = {**params, "kernel": jax.device_put(params["kernel"], NamedSharding(mesh, P()))}
    facts["unlike"] = unlike(wrong, params)
    with work() as facts["compiled"]:
        jax.jit(lambda leaf: leaf + 3)(params["kernel"])
    differing = jax.make_array_from_single_device_arrays(
        (2,),
        NamedSharding(mesh, P()),
        [jax.device_put(np.full(2, n, np.float32), d) for n, d in enumerate(mesh.devices)],
    )
    return facts | {"copies": unequal_copies({"differs": differing, **params})}


# Questions.


def compiled(layout: str, config: Facts, way: str = "step") -> Facts:
    """All about the compiled step on a mesh."""
    mesh, transformation = mesh_of(layout), made(config)
    params = placed(layout, values(layout, 0), mesh)
    state = transformation.init(params)
    first = placed(layout, gradients(layout, 1)[0], mesh)
    step = stepping(transformation, way)
    build = step.lower(first, state, params).compile()
    facts = program(build.as_text())
    kept = sum(shard_bytes(leaf) for leaf in jax.tree.leaves((state, params)))
    facts["not_in_place"] = kept - build.memory_analysis().alias_size_in_bytes
    facts["init"] = unlike(state, params)
    facts["jitted init"] = unlike(jax.jit(transformation.init)(params), params)
    other = Run(layout, transformation, mesh, step)
    other.go_on(gradients(layout, CALLS))
    one = reference(layout, config, way=way)
    facts |= {"apart": one.apart(other), "moved": one.moved()}
    facts["after"] = unlike(other.state, other.params)
    with work() as facts["again"]:
        Run(layout, transformation, mesh, step).go_on(gradients(layout, 2))
        other.state = door.set_learning_rate(other.state, 0.5)
        other.go_on(gradients(layout, 1))
    return facts


def in_explicit_mode(config: Facts) -> Facts:
    """A loss, its gradients and a step where shardings are a part of types."""
    layout, mesh, transformation = "grid", mesh_of("grid", AxisType.Explicit), made(config)

    def loss(params: Tree, slopes: Tree) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), params, slopes)))

    @partial(jax.jit, donate_argnums=(1, 2))
    def step(slopes: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return door.step(transformation, jax.grad(loss)(params, slopes), state, params)

    one = reference(layout, config)
    with jax.set_mesh(mesh):
        other = Run(layout, transformation, mesh, step)
        facts: Facts = {"init": unlike(other.state, other.params)}
        jitted = jax.jit(transformation.init)(other.params)
        facts["jitted init"] = unlike(jitted, other.params)
        with work() as first:
            other.go_on(gradients(layout, CALLS))
        with work() as again:
            Run(layout, transformation, mesh, step).go_on(gradients(layout, 2))
        facts |= {"first": first, "again": again, "after": unlike(other.state, other.params)}
        facts["types"] = {name: str(jax.typeof(leaf)) for name, leaf in other.params.items()}
    return facts | {"apart": one.apart(other), "moved": one.moved()}


def in_shard_map(config: Facts, layout: str = "grid", check: bool = True) -> Facts:
    """A step that every device takes for itself; of what is sharded if nothing is checked."""
    leave_out = () if check else COPIED
    mesh, transformation = mesh_of(layout), made(config)
    other = Run(layout, outside(config), mesh, leave_out=leave_out)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, (other.params, other.state))
    try:
        other.step = mapped(transformation, mesh, *specs, check)
        other.go_on(gradients(layout, CALLS))
    except ValueError as error:
        return {"error": str(error)}
    one = reference(layout, config, leave_out)
    return {"apart": one.apart(other), "moved": one.moved(), "copies": unequal_copies(other.state)}


def mapped(transformation: Any, mesh: Mesh, params: Tree, state: Tree, check: bool) -> Any:
    return jax.jit(
        jax.shard_map(
            lambda g, s, p: door.step(transformation, g, s, p),
            mesh=mesh,
            in_specs=(params, state, params),
            out_specs=(params, state),
            check_vma=check,
        )
    )


def in_pmap(config: Facts) -> Facts:
    """The same by `pmap`, where each device has some rows."""
    layout, transformation = "rows", made(config)
    shapes = {name: shape for name, (shape, *_) in LAYOUTS[layout].items()}

    def split(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: a.reshape(8, a.shape[0] // 8, *a.shape[1:]), tree)

    def joined(tree: Tree) -> Tree:
        # What there is one number of is the same on all devices.
        return {key: np.asarray(leaf).reshape(shapes[key]) for key, leaf in tree.items()}

    params = split({k: v for k, v in values(layout, 0).items() if k not in COPIED})
    state = jax.pmap(transformation.init, axis_name="devices")(params)
    step = jax.pmap(lambda g, s, p: door.step(transformation, g, s, p), axis_name="devices")
    try:
        for each in gradients(layout, CALLS):
            grads = split({k: v for k, v in each.items() if k in params})
            params, state = step(grads, state, params)
    except ValueError as error:
        return {"error": str(error)}
    one = reference(layout, config, COPIED)
    known = (one.params, one.state.momentum)
    found = (joined(params), joined(state.momentum))
    reached = (one.reached[0], one.reached[1].momentum)
    return {"apart": apart(known, found, reached), "moved": one.moved()}


def nan_on_one_device(way: str, config: Facts) -> Facts:
    """A call with a NaN in what one device has of one gradient, between two others."""
    layout, mesh, transformation = "rows", mesh_of("rows"), made(config)
    taken = Run(layout, outside(config), mesh, leave_out=COPIED)
    if way != "jit":
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, (taken.params, taken.state))
        taken.step = mapped(transformation, mesh, *specs, way == "shard_map")
    good = gradients(layout, 1)
    bad = {name: np.array(array) for name, array in good[0].items()}
    bad["bias"][150] = np.nan
    taken.go_on(good)
    before = host(taken.params)
    taken.go_on([bad])
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, host(taken.params))
    metrics = door.metrics(taken.state)
    taken.go_on(good)
    moves = jax.tree.map(lambda a, b: bool((a != b).any()), before, host(taken.params))
    told = {key: metrics[key] for key in ("calls", "skipped_calls")}
    return {"same": same, "moves": moves, "copies": unequal_copies(taken.state), **told}


def asked_on_a_mesh(way: str) -> Facts:
    """A learning rate that is asked for, against the same as a number."""
    asked: list[float] = []

    def rate() -> float:
        asked.append(0.01)
        return 0.01

    layout, mesh = "grid", mesh_of("grid")
    asking = Run(layout, made({"learning_rate": rate}), mesh)
    if way == "shard_map":
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, (asking.params, asking.state))
        asking.step = mapped(made({"learning_rate": rate}), mesh, *specs, True)
    asked.clear()
    asking.go_on(gradients(layout, CALLS))
    jax.effects_barrier()
    number = reference(layout, {"learning_rate": 0.01})
    return {"asked": len(asked) / CALLS, "apart": number.apart(asking), "moved": number.moved()}


def gradients_elsewhere() -> Facts:
    """A step with gradients of which every device has a copy."""
    layout, mesh, config = "grid", mesh_of("grid"), {"global_clipnorm": 1.0}
    transformation = made(config)
    one, other = reference(layout, config), Run(layout, transformation, mesh)
    everywhere = NamedSharding(mesh, P())
    other.place = lambda tree: jax.device_put(tree, everywhere)
    other.go_on(gradients(layout, CALLS))
    facts: Facts = {"after": unlike(other.state, other.params)}
    return facts | {"apart": one.apart(other), "moved": one.moved()}


def uneven() -> Facts:
    """Parameters of 10 rows on 8 devices: refused, constrained in compiled code, and padded."""
    sharding = NamedSharding(mesh_of("rows"), P("fsdp"))
    transformation = made({"global_clipnorm": 1.0, "weight_decay": 0.1})
    rng = np.random.default_rng(0)
    param, *grads = (rng.normal(size=(10, 50)).astype(np.float32) for _ in range(3))
    facts: Facts = {}
    try:
        jax.device_put(param, sharding)
    except ValueError as error:
        facts["refused"] = str(error)

    def trained(place: Callable[[Any], Any], param: Any, grads: Any) -> Any:
        param = place(param)
        state, passed = transformation.init(param), []
        for grad in grads:
            param, state = door.step(transformation, place(grad), state, param)
            passed.append((param, state.momentum, state.velocity))
        return passed

    plain = jax.jit(partial(trained, lambda each: each))(param, grads)
    constrained = jax.jit(
        partial(trained, lambda each: jax.lax.with_sharding_constraint(each, sharding))
    )
    reached = jax.tree.map(lambda *leaves: np.abs(host(leaves)).max(0), *plain)
    facts["constrained"] = apart(plain[-1], constrained(param, grads)[-1], reached)
    # What a device has of 10 rows on 8 devices is two rows.
    facts["local"] = 2 * 50 in sizes(constrained.lower(param, grads).compile().as_text())

    def padded(array: Any) -> Any:
        return jax.device_put(np.pad(array, ((0, 6), (0, 0))), sharding)

    state = transformation.init(padded(param))
    step, wide = stepping(transformation), padded(param)
    for grad in grads:
        wide, state = step(padded(grad), state, wide)
    after = host((wide, state.momentum, state.velocity))
    facts["padded"] = apart(plain[-1], jax.tree.map(lambda leaf: leaf[:10], after), reached)
    facts["padding"] = float(np.abs(np.asarray(wide)[10:]).max())
    return facts


FULL = {"amsgrad": True, "weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True,
        "ema_momentum": 0.9, "ema_overwrite_frequency": 2,
        "gradient_accumulation_steps": 3}  # fmt: skip


def checkpointed(folder: str) -> Facts:
    """A run on eight devices that goes on on eight, on four and on one."""
    layout, transformation = "grid", made(FULL)
    meshes = {"8": mesh_of(layout), "4": mesh_of(layout, count=4), "1": None}
    path = Path(folder)
    first = Run(layout, transformation, meshes["8"])
    first.go_on(gradients(layout, 5))
    facts: Facts = {"window": int(first.state.accumulated_calls)}
    door.save(path / "portable", transformation, first.state, first.params)
    keep_by_orbax(path / "orbax", first)
    saved, kept = door.state_dict(transformation, first.state, first.params), host(first.params)
    first.go_on(gradients(layout, 7, since=5))
    for name, mesh in meshes.items():
        step = first.step if name == "8" else stepping(transformation)
        for way in ("portable", "orbax"):
            resumed = Run(layout, transformation, mesh, step)
            resumed.params = placed(layout, kept, mesh)
            if way == "portable":
                arguments = (transformation, resumed.state, resumed.params)
                resumed.state = door.load(path / way, *arguments)
            else:
                taken_from_orbax(path / way, resumed)
            lost = lost_entries(saved, transformation, resumed)
            lies = [] if mesh is None else unlike(resumed.state, resumed.params)
            with work() as done:
                resumed.go_on(gradients(layout, 7, since=5))
            facts[f"{way} on {name}"] = {
                "lost": lost,
                "unlike": lies,
                "compiled": done["backend_compile"],
                "is_same": is_same((first.params, first.state), (resumed.params, resumed.state)),
                "apart": first.apart(resumed),
            }
    return facts


def lost_entries(saved: Tree, transformation: Any, resumed: Run) -> list[str]:
    found = door.state_dict(transformation, resumed.state, resumed.params)
    assert found.keys() == saved.keys()
    return [name for name in saved if saved[name].tobytes() != found[name].tobytes()]


def keep_by_orbax(path: Path, run: Run) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, (run.params, run.state))


def taken_from_orbax(path: Path, run: Run) -> None:
    import orbax.checkpoint as ocp

    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        (run.params, run.state),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        run.params, run.state = checkpointer.restore(path, like)


def is_same(one: Tree, other: Tree) -> bool:
    pairs = zip(jax.tree.leaves(host(one)), jax.tree.leaves(host(other)), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


QUESTIONS: tuple[Callable[..., Facts], ...] = (
    bad_programs,
    bad_runs,
    compiled,
    in_explicit_mode,
    in_shard_map,
    in_pmap,
    nan_on_one_device,
    asked_on_a_mesh,
    gradients_elsewhere,
    uneven,
    checkpointed,
)


def main() -> None:
    asked = {question.__name__: question for question in QUESTIONS}
    print(json.dumps([True, jax.device_count()]), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [True, asked[name](*arguments)]
        except Exception:
            answer = [False, traceback.format_exc()]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
