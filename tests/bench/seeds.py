"""Tasks of several seeds, each in a process of its own, and what became of a run cut off."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

#: (case, system, metric, unit) -> a figure a seed.
Key = tuple[str, str, str, str]
Samples = dict[Key, list[float]]


def run_tasks(
    work: Callable[..., Samples],
    tasks: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    log: Callable[[str], None],
    keep: Path | None = None,
) -> Samples:
    """Runs tasks in processes of their own, and joins what they find in the tasks' order.

    Args:
        work: a function of a module, called with a task's arguments.
        tasks: arguments that print as they differ.
        jobs: processes at a time.
        log: takes lines of progress.
        keep: a folder for what each task found: a run that was cut off goes on from there.

    Returns:
        Of each key the tasks' figures, in the tasks' order.
    """
    found: dict[int, Samples] = {}
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(jobs, mp_context=spawn) as pool,
    ):
        waiting = {}
        for i, task in enumerate(tasks):
            kept = None if keep is None else keep / f"{'_'.join(map(str, task))}.json"
            if kept is not None and kept.exists():
                found[i] = {tuple(key): values for *key, values in json.loads(kept.read_text())}
            else:
                waiting[pool.submit(_one, work, task, cache)] = i, kept
        for done in as_completed(waiting):
            i, kept = waiting[done]
            found[i] = done.result()
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps([[*key, values] for key, values in found[i].items()]))
            log(" ".join(map(str, tasks[i])))
            for (case, system, metric, _), values in found[i].items():
                log(f"    {case} | {system} | {metric}: {', '.join(f'{v:.4g}' for v in values)}")
    samples: Samples = {}
    for i in range(len(tasks)):
        for key, values in found[i].items():
            samples.setdefault(key, []).extend(values)
    return samples


def _one(work: Callable[..., Samples], task: tuple[Any, ...], cache: str) -> Samples:
    import jax

    # One folder a process: two that write the same entry at once can spoil it.
    jax.config.update("jax_compilation_cache_dir", f"{cache}/{os.getpid()}")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return work(*task)
