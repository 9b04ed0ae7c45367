"""Runs a recipe: one run in this process, or all, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmwsss.apis.cli import terminated_like_ctrl_c
from mmwsss.apis.recipe import Recipe, run_configs, stages_of, write_configs
from mmwsss.apis.stages import available_cores, plan_stages, run_stages, start
from mmwsss.errors import InputError

RECORD = 'stages.json'


def plan_run(
    recipe: Recipe, run: str, *, root: Path, redo: str | None = None
) -> dict[str, str | None]:
    """Stage -> why it would run, None if it is done; writes nothing."""
    configs = run_configs(recipe, run)
    stages = stages_of(recipe, run, root=root, configs=configs)
    return plan_stages(stages, recipe.work_dir / run / RECORD, redo=redo)


def format_plan(
    recipe: Recipe,
    *,
    root: Path,
    run: str | None = None,
    redo: str | None = None,
    only: str | None = None,
) -> str:
    """One line per stage of each run: would it run, and why."""
    lines, number = [], 0
    runs = list(recipe.runs()) if run is None else [run]
    for name in runs:
        lines.append(name)
        plan = plan_run(recipe, name, root=root, redo=redo)
        for stage, reason in plan.items():
            if only not in (None, stage):
                lines.append(f'  {stage}: left alone')
            elif reason is None:
                lines.append(f'  {stage}: done')
            else:
                number += 1
                lines.append(f'  {stage}: would run ({reason})')
    return '\n'.join([*lines, f'stages that would run: {number}'])


def run_one(
    recipe: Recipe,
    run: str,
    *,
    root: Path,
    redo: str | None = None,
    only: str | None = None,
) -> None:
    """Run the stages of one run that are not done; arguments as ``run_stages``."""
    configs = run_configs(recipe, run)
    stages = stages_of(recipe, run, root=root, configs=configs)
    run_stages(
        stages,
        recipe.work_dir / run / RECORD,
        redo=redo,
        only=only,
        # Not earlier: another process may be working with those that are there.
        begin=lambda: write_configs(configs),
    )


def run_all(
    recipe: Recipe, *, root: Path, jobs: int, options: Sequence[str] = ()
) -> None:
    """All runs, ``jobs`` at a time, each a process of its own with a log file.

    On Ctrl-C and SIGTERM the running ones are ended and no other is started; where
    this process is killed, so are they (on Linux).

    Args:
        recipe: The recipe.
        root: The repository, where the tools are.
        jobs: Runs at a time; they share the cores.
        options: Of ``run_recipe.py``, for every run.

    Raises:
        InputError: Runs failed; names them and the first one's log. The other runs
            are finished first.
        KeyboardInterrupt: After the running ones have ended.
    """
    if jobs < 1:
        raise InputError(f'--jobs must be 1 or more, got {jobs}')
    environment = {
        'OMP_NUM_THREADS': str(max(1, available_cores() // jobs)),
        **os.environ,
    }
    tool = root / 'tools' / 'run_recipe.py'
    command = [sys.executable, tool, recipe.path, *options, '--run']
    waiting, total, failed = list(recipe.runs()), len(recipe.runs()), []
    running: dict[str, subprocess.Popen] = {}

    with terminated_like_ctrl_c():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    with _log(recipe, run).open('a') as stream:
                        running[run] = start(
                            [*command, run], environment=environment, output=stream
                        )
                for run in [r for r, c in running.items() if c.poll() is not None]:
                    code = running.pop(run).returncode
                    if code:
                        failed.append(run)
                    state = f'FAILED, see {_log(recipe, run)}' if code else 'done'
                    number = total - len(waiting) - len(running)
                    print(f'[{number}/{total}] {run}: {state}', flush=True)
                time.sleep(0.1)
        except KeyboardInterrupt:
            for child in running.values():
                child.terminate()
            for child in running.values():
                child.wait()
            raise
    if failed:
        first = min(failed, key=list(recipe.runs()).index)
        raise InputError(
            f'{len(failed)} of {total} runs failed, the first is {first}; its messages '
            f'are in {_log(recipe, first)}; the same command goes on with what is '
            'missing'
        )


def _log(recipe: Recipe, run: str) -> Path:
    path = recipe.work_dir / run / 'log.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
