"""``mmwsss train``: what tools/train.py does, by name, and never over another run.

With ``--data`` a config learns from other photos and classes than it was written for.
"""

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
    'mmwsss train dual_frozen_msrc --data my_photos --work-dir work_dirs/mine\n'
    'mmwsss train deeplabv3_mobileone_msrc --data my_photos --labels my_masks\n'
    'torchrun --nproc_per_node 4 -m mmwsss train clipdino_refine_voc '
    '--launcher pytorch',
)
@config_argument
@click.option(
    '--data',
    type=FILE,
    help="Folder of the data set, in place of the config's: image_labels.json, and "
    "photos in photos/. Its classes take the place of the config's. For scoring: masks "
    'in masks/ and val.txt, the ids of photos to hold out.',
)
@click.option(
    '--labels',
    type=FILE,
    multiple=True,
    help='Folder of stored labels for a config that learns from them, as mmwsss label '
    "and mmwsss convert annotations write; of several, the first that has a photo's.",
)
@click.option(
    '--exclude',
    type=FILE,
    multiple=True,
    metavar='FILE',
    help='Image ids, one a line, of photos to leave out of the training, such as '
    'mmwsss prepare-data check photos FOLDER --list FILE writes; of clips, ids of '
    'frames or of whole clips.',
)
@click.option(
    '--max-iters',
    type=int,
    metavar='N',
    help='Length of the training; learning rate schedules follow.',
)
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
    labels: tuple[Path, ...],
    exclude: tuple[Path, ...],
    max_iters: int | None,
    work_dir: Path | None,
    resume: bool,
    overwrite: bool,
    amp: bool,
    profile: int | None,
    launcher: str,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train CONFIG, a name from `mmwsss configs` or a file.

    The work directory receives the config as it was trained, so that other verbs need
    neither --data nor --labels: they take the directory for CONFIG and CHECKPOINT.
    """
    from mmwsss.apis.pretrained_weights import check_pretrained
    from mmwsss.command.found import read_config

    if resume and overwrite:
        raise InputError('--resume goes on and --overwrite begins again; give one')
    cfg = read_config(
        config,
        cfg_options,
        data=data,
        labels=labels,
        exclude=exclude,
        max_iters=max_iters,
        work_dir=work_dir,
    )
    _check_labels(cfg, config)
    check_pretrained(cfg)
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
        if run.is_first_rank and (data is not None or labels or exclude):
            for name, value in _photos(cfg).items():
                print(f'{name}: {value}')
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
    reads = {'config': config, **_photos(cfg)}
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


def _photos(cfg: 'Config') -> dict[str, str]:
    """What a training learns from and is scored on, in words."""
    from mmwsss.command.found import build_dataset

    dataset = build_dataset(cfg, 'train')
    classes = [c for c in dataset.metainfo['classes'] if c != 'background']
    # Someone's own are few, and worth a look; VOC's twenty are not.
    few = f' ({", ".join(classes)})' if len(classes) <= 12 else ''
    found = {
        'classes': f'{len(classes)}{few}',
        'train photos': f'{dataset.data_root or ""} ({len(dataset)})',
    }
    encoders = cfg.model.get('backbone', {}).get('encoders') or {}
    for encoder in encoders.values():
        if few and encoder.get('class_names'):
            found['words for CLIP'] = '; '.join(encoder['class_names'])
    if cfg.get('val_dataloader') is None:
        found['val photos'] = 'none: no masks of photos in a val list; see --help'
    else:
        dataset = build_dataset(cfg, 'val')
        found['val photos'] = f'{dataset.data_root or ""} ({len(dataset)})'
    return found


def _check_labels(cfg: 'Config', config: Path) -> None:
    from mmwsss.apis.own_data import missing_labels

    missing = missing_labels(cfg)
    if missing is not None:
        raise InputError(
            f'{config.stem} learns from stored labels, and {missing} does not exist; '
            'give what mmwsss label wrote: --labels FOLDER'
        )
