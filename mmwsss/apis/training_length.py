"""A config that trains shorter or longer, with everything that depends on it."""

import copy
from collections.abc import Mapping, Sequence

from mmengine.config import Config

from mmwsss.errors import InputError


def with_max_iters(config: Config, max_iters: int) -> Config:
    """A config of another number of iterations.

    Learning rate schedules are stretched, but a warm-up is not cut to nothing.
    Validation, checkpoints and what else comes every so many iterations keep their
    intervals where they fit into the training, and come once, at its end, where they do
    not. What counts as ``progress`` follows by itself.

    Args:
        config: Of a training that counts iterations; not changed.
        max_iters: 1 or more.

    Raises:
        InputError: The training counts epochs, or the number is below 1.
    """
    if max_iters < 1:
        raise InputError(f'--max-iters must be 1 or more, got {max_iters}')
    before = (config.get('train_cfg') or {}).get('max_iters')
    if not before:
        raise InputError(
            f'{config.filename} counts epochs, so --max-iters does not fit; use '
            '--cfg-options train_cfg.max_epochs=N'
        )
    found = copy.deepcopy(config)
    found.train_cfg.max_iters = max_iters
    if found.train_cfg.get('val_interval'):
        interval = min(found.train_cfg.val_interval, max_iters)
        # Once at the end stays once at the end.
        at_end = config.train_cfg.val_interval >= before
        found.train_cfg.val_interval = max_iters if at_end else interval
    schedules = found.get('param_scheduler') or []
    several = not isinstance(schedules, Mapping)
    kept = _stretched(schedules if several else [schedules], before, max_iters)
    if kept:
        found.param_scheduler = kept if several else kept[0]
    hooks = [*(found.get('default_hooks') or {}).values()]
    for hook in [*hooks, *(found.get('custom_hooks') or [])]:
        if hook is not None and hook.get('interval', 0) > max_iters:
            hook['interval'] = max_iters
    return found


def _stretched(schedules: Sequence[dict], before: int, after: int) -> list[dict]:
    """Schedules of a training of another length; those of no length are left out.

    A warm-up shrinks with the training, but not below a tenth of it unless it was
    shorter: MMEngine's LinearLR of a single step would never leave its first value.
    """

    def moved(step: int) -> int:
        if step >= before:
            return step - before + after
        return max(round(step * after / before), min(step, after // 10))

    kept = []
    for schedule in schedules:
        if not schedule.get('by_epoch', True):
            for name in ('begin', 'end', 'T_max'):
                if schedule.get(name):
                    schedule[name] = moved(schedule[name])
            if schedule.get('milestones'):
                schedule['milestones'] = [moved(step) for step in schedule.milestones]
            end = schedule.get('end', after)
            if end < after and end - schedule.get('begin', 0) < 2:
                continue
        kept.append(schedule)
    return kept
