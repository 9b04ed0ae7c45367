"""``mmwsss evaluate``: what tools/evaluate.py does, by name, not over another run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmwsss.command.common import (
    FILE,
    Run,
    cfg_options_option,
    config_argument,
    data_option,
    device_option,
    dry_run_option,
    out_option,
    overwrite_option,
    show_plan,
    trust_option,
    verb,
)
from mmwsss.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config

SPLITS = ('train', 'val')


@verb(
    'evaluate',
    example='mmwsss evaluate clipdino_refine_voc work_dirs/clipdino_refine_voc '
    '--data data/VOC2012 --out work_dirs/evaluation',
)
@config_argument
@click.argument('checkpoint', type=FILE)
@out_option('Receives metrics.json and pictures.')
@data_option
@click.option(
    '--split',
    type=click.Choice(SPLITS),
    multiple=True,
    help='Default: both, or the one with masks.',
)
@click.option(
    '--num-pictures', default=12, show_default=True, help='Photos drawn per split.'
)
@device_option
@overwrite_option('the numbers of another run')
@cfg_options_option
@trust_option
@dry_run_option
def command(
    config: Path,
    checkpoint: Path,
    out: Path,
    data: Path | None,
    split: tuple[str, ...],
    num_pictures: int,
    device: str | None,
    overwrite: bool,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Score CHECKPOINT, a file or a work directory: CAMs, refined labels, segmentor.

    A finished split is not computed again.
    """
    from mmwsss.apis.evaluate import EvaluationOptions, evaluate_run, split_states
    from mmwsss.command.found import count_photos, read_config
    from mmwsss.files import find_checkpoint

    cfg = read_config(config, cfg_options, data=data)
    checkpoint = find_checkpoint(checkpoint)
    options = EvaluationOptions(
        splits=tuple(dict.fromkeys(split or _with_masks(cfg) or SPLITS)),
        num_pictures=num_pictures,
    )
    states = split_states(cfg, checkpoint, out, options=options)
    other = [name for name, state in states.items() if state == 'other']
    if other and not overwrite:
        raise InputError(
            f'{out} holds the numbers of another run or of other options (split '
            f'{other[0]}); give another --out, or add --overwrite to replace them'
        )
    counts = {name: count_photos(cfg, _SPLIT_NAMES[name])[0] for name in states}
    done = sum(counts[name] for name, state in states.items() if state == 'done')
    if dry_run:
        show_plan(
            reads={
                'config': config,
                'checkpoint': checkpoint,
                **{f'{n} photos': f'{counts[n]} ({states[n]})' for n in states},
            },
            writes={'numbers and pictures': out},
            to_make=sum(counts.values()) - done,
            there=done,
        )
        return
    with Run('evaluate', folder=out) as run:
        from tqdm import tqdm

        run.skipped(count=done)
        metrics = evaluate_run(
            cfg,
            checkpoint,
            out,
            options=options,
            device=device,
            progress=lambda loader, name: tqdm(
                loader, desc=f'scoring {name}', unit='photo', mininterval=1
            ),
        )
        for number in metrics['numbers']:
            _report(number)
            run.note('number', {key: number[key] for key in _LOGGED})
        run.ok(count=sum(counts.values()) - done)


# A split of the evaluation -> that of the photos: training photos without augmentation.
_SPLIT_NAMES = {'train': 'train_eval', 'val': 'val'}
_LOGGED = ('key', 'miou', 'images', 'policy')


def _with_masks(cfg: 'Config') -> list[str]:
    """Splits of which a config says where their masks are."""
    return [s for s in SPLITS if cfg.get(f'{_SPLIT_NAMES[s]}_dataloader') is not None]


def _report(number: dict) -> None:
    miou = '-' if number['miou'] is None else f'{number["miou"]:.2f}'
    kept = f', {number["kept"]:.1f} % kept' if number['kept'] < 100 else ''
    print(
        f'{number["split"]:<5} {number["title"]:<16} mIoU {miou:>6}   '
        f'{number["images"]} photos; {number["policy"]}{kept}'
    )
