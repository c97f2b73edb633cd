"""One rank of a world: `python worker.py plan.json rank`."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import oneadam

STARTING = timedelta(seconds=180)


def main(plan_file: Path, rank: int) -> None:
    plan = json.loads(plan_file.read_text())
    torch.set_num_threads(1)
    oneadam.set_num_threads(1)
    size, patience = plan["size"], timedelta(seconds=plan["patience"])
    store = dist.FileStore(str(plan_file.with_name("store")), size)
    store.set_timeout(2 * patience)
    generation = 0
    _join(store, generation, rank, size, patience)
    for number, job in enumerate(plan["jobs"]):
        began = time.monotonic()
        finished = _attempt(plan_file.parent, rank, job)
        print(f"{time.monotonic() - began:6.2f} s {job['name']}", flush=True)
        if number + 1 == len(plan["jobs"]):
            break
        # A rank that failed in the middle of a job leaves collectives without a partner behind:
        # the others must not take them for those of the next job.
        store.set(f"{number}/{rank}", "finished" if finished else "failed")
        told = [store.get(f"{number}/{other}") for other in range(size)]
        if b"failed" in told:
            generation += 1
            dist.destroy_process_group()
            _join(store, generation, rank, size, patience)
    dist.destroy_process_group()


def _join(store: Any, generation: int, rank: int, size: int, patience: timedelta) -> None:
    # Processes start one after the other; the patience is for what comes then.
    store.set(f"{generation} here/{rank}", "yes")
    store.wait([f"{generation} here/{other}" for other in range(size)], STARTING)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(f"generation {generation}", store),
        rank=rank,
        world_size=size,
        timeout=patience,
    )


def _attempt(folder: Path, rank: int, job: dict[str, Any]) -> bool:
    place = folder / f"{job['name']}.{rank}"
    try:
        module, function = job["run"].split(":")
        run = getattr(importlib.import_module(module), function)
        with warnings.catch_warnings():
            # From here on; what torch says to itself while it is imported is not ours.
            warnings.simplefilter("error")
            result = run(**job["options"])
        torch.save(result, f"{place}.part")
    except Exception:
        Path(f"{place}.error").write_text(traceback.format_exc())
        return False
    # A file that is there is complete.
    Path(f"{place}.part").rename(f"{place}.pt")
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
