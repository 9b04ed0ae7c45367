"""``mmwsss train``: what tools/train.py does, by name, and never over another run."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmwsss.command.common import (
    FILE,
    LAUNCHERS,
    Run,
    cfg_options_option,
    config_argument,
    data_option,
    dry_run_option,
    overwrite_option,
    show_plan,
    trust_option,
    verb,
)
from mmwsss.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config

# With the digests beside them.
_CHECKPOINTS = ('iter_*.pth*', 'epoch_*.pth*', 'best_*.pth*', 'last_checkpoint')


@verb(
    'train',
    example='mmwsss train clipdino_refine_voc --data data/VOC2012\n'
    'mmwsss train clipdino_refine_voc --data data/VOC2012 --resume\n'
    'torchrun --nproc_per_node 4 -m mmwsss train clipdino_refine_voc '
    '--launcher pytorch',
)
@config_argument
@data_option
@click.option(
    '--work-dir',
    type=FILE,
    help='Folder for logs and checkpoints; default: work_dirs/CONFIG.',
)
@click.option(
    '--resume', is_flag=True, help='Go on from the latest checkpoint, if there is one.'
)
@overwrite_option('the training that the work dir holds')
@click.option('--amp', is_flag=True, help='Mixed precision (needs a GPU).')
@click.option(
    '--profile', type=int, metavar='N', help='Print what N iterations spend time on.'
)
@click.option('--launcher', type=click.Choice(LAUNCHERS), default='none')
@cfg_options_option
@trust_option
@dry_run_option
def command(
    config: Path,
    data: Path | None,
    work_dir: Path | None,
    resume: bool,
    overwrite: bool,
    amp: bool,
    profile: int | None,
    launcher: str,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train CONFIG, a name from `mmwsss configs` or a file."""
    from mmwsss.command.found import read_config

    if resume and overwrite:
        raise InputError('--resume goes on and --overwrite begins again; give one')
    cfg = read_config(config, cfg_options, data=data, work_dir=work_dir)
    folder = Path(cfg.work_dir)
    there = existing_training(folder)
    if there and not (resume or overwrite):
        raise InputError(
            f'{folder} holds a training already ({there[0].name}); add --resume to go '
            'on, --overwrite to begin again, or give another --work-dir'
        )
    if dry_run:
        _show(cfg, config, folder, resuming=bool(there and resume))
        return
    with Run('train', folder=folder) as run:
        from mmwsss.apis.host_memory import keep_freed_memory
        from mmwsss.apis.train import build_training

        keep_freed_memory()
        runner = build_training(
            cfg, launcher=launcher, resume=resume, amp=amp, profile=profile
        )
        if overwrite and run.is_first_rank:
            # As late as this: a mistake in the config costs nothing.
            for path in there:
                path.unlink(missing_ok=True)
        run.start()
        runner.train()
        run.ok(str(folder))


def existing_training(work_dir: Path) -> list[Path]:
    """Checkpoints in a work directory, and the file that names the last one."""
    return sorted(chain.from_iterable(work_dir.glob(name) for name in _CHECKPOINTS))


def _show(cfg: 'Config', config: Path, folder: Path, *, resuming: bool) -> None:
    from mmwsss.command.found import count_photos

    reads = {'config': config}
    for split in ('train', 'val'):
        if split == 'train' or cfg.get('val_dataloader') is not None:
            number, root = count_photos(cfg, split)
            reads[f'{split} photos'] = f'{root} ({number})'
    loop = cfg.train_cfg
    length = loop.get('max_iters') or loop.get('max_epochs')
    unit = 'iterations' if loop.get('max_iters') else 'epochs'
    batch = cfg.train_dataloader.batch_size
    state = 'going on from the latest checkpoint' if resuming else 'from the start'
    show_plan(
        reads=reads,
        writes={'checkpoints and logs': f'{folder} ({state})'},
        notes={'training': f'{length} {unit} of {batch} photos each'},
        to_make=1,
    )
