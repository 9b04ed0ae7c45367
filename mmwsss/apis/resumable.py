"""A training that loses nothing, from any config: which parts, and where to go on."""

from pathlib import Path

from mmengine.config import Config

from mmwsss.apis.jobs import rank_and_size
from mmwsss.checkpoints import newest_whole_checkpoint

HOOK = 'mmwsss.CheckpointHook'
LOOP = 'mmwsss.ResumableTrainLoop'


def make_resumable(cfg: Config) -> None:
    """Exchange parts of MMEngine for those that lose nothing; others stay.

    ========================  =====================================================
    in the config             used
    ========================  =====================================================
    ``CheckpointHook``        ``mmwsss.CheckpointHook``: whole files with a digest
                              and random states
    ``IterBasedTrainLoop``    ``mmwsss.ResumableTrainLoop``: resumed in no time
    ``InfiniteSampler``       ``mmwsss.ResumableSampler`` around a
                              ``mmwsss.SeededDataset``: the same samples whatever the
                              number of workers and of interruptions
    ========================  =====================================================

    So a plain config of MMSegmentation needs no change. Whoever wants MMEngine's part
    writes its name with the scope, ``mmengine.CheckpointHook``.

    Args:
        cfg: A training config; changed here.
    """
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook is not None and _is(hook, 'CheckpointHook'):
        hooks['checkpoint'] = {**hook, 'type': HOOK}
        cfg.default_hooks = hooks
    loop = cfg.get('train_cfg') or {}
    by_iteration = 'type' not in loop and loop.get('by_epoch') is False
    if by_iteration or _is(loop, 'IterBasedTrainLoop'):
        replaced = ('by_epoch', 'fast_forward_on_resume')
        kept = {name: v for name, v in loop.items() if name not in replaced}
        cfg.train_cfg = {**kept, 'type': LOOP}
        _seed_samples(cfg.train_dataloader)


def _seed_samples(loader: dict) -> None:
    if _is(loader.get('sampler') or {}, 'InfiniteSampler'):
        loader['sampler'] = {**loader['sampler'], 'type': 'mmwsss.ResumableSampler'}
        loader['dataset'] = dict(type='mmwsss.SeededDataset', dataset=loader['dataset'])


def _is(part: dict, name: str) -> bool:
    """Whether a part is MMEngine's; pure Python configs name it by its class."""
    given = part.get('type')
    if isinstance(given, str):
        return given == name
    return f'{getattr(given, "__module__", "")}.'.startswith('mmengine.') and (
        given.__name__ == name
    )


def resume_newest(cfg: Config) -> None:
    """Make a training go on from the newest whole checkpoint of its work dir.

    Without one it goes on from ``cfg.load_from``, as MMEngine does, or begins. A
    ``load_from`` inside the work dir is taken as it is; one outside only before there
    are checkpoints, or a run that is resumed twice would lose what lies between.

    Args:
        cfg: With ``work_dir``; changed here.

    Raises:
        InputError: There are checkpoints, but none is whole.
    """
    cfg.resume = True
    given, work_dir = cfg.get('load_from'), Path(cfg.work_dir)
    if given and work_dir.resolve() in Path(given).resolve().parents:
        return
    found = find_resumed(work_dir)
    if found:
        cfg.load_from = str(found)


def find_resumed(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a work dir, None if there is none.

    Says in one line when it is not the last one.

    Raises:
        InputError: There are checkpoints, but none is whole.
    """
    found, passed = newest_whole_checkpoint(work_dir)
    if passed and rank_and_size()[0] == 0:
        names = ', '.join(path.name for path in passed)
        print(
            f'{names} in {work_dir} is torn or was changed after it was written; '
            f'going on from {found.name}, the one before'
        )
    return found
