"""``mmwsss test``: what tools/test.py does, by name."""

from pathlib import Path

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
    refuse_existing,
    show_plan,
    trust_option,
    verb,
)


@verb(
    'test',
    example='mmwsss test clipdino_refine_voc work_dirs/clipdino_refine_voc '
    '--data data/VOC2012',
)
@config_argument
@click.argument('checkpoint', type=FILE)
@data_option
@click.option('--out', type=FILE, help='Receives the predicted label maps.')
@overwrite_option('the label maps in --out')
@click.option('--tta', is_flag=True, help='Several scales and flips (cfg.tta_model).')
@click.option(
    '--work-dir', type=FILE, help='Folder for logs; default: work_dirs/CONFIG.'
)
@click.option('--launcher', type=click.Choice(LAUNCHERS), default='none')
@cfg_options_option
@trust_option
@dry_run_option
def command(
    config: Path,
    checkpoint: Path,
    data: Path | None,
    out: Path | None,
    overwrite: bool,
    tta: bool,
    work_dir: Path | None,
    launcher: str,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Score CHECKPOINT, a file or a work directory, on the test photos of CONFIG.

    A folder of --data needs masks for that: masks/ and val.txt (or test.txt), the ids
    of photos that have one. Without any, mmwsss label makes masks and scores nothing.
    """
    from mmwsss.apis.config_names import name_of
    from mmwsss.apis.own_data import check_scorable
    from mmwsss.command.found import count_photos, read_config
    from mmwsss.files import find_checkpoint

    cfg = read_config(config, cfg_options, data=data, work_dir=work_dir)
    check_scorable(cfg, config_name=name_of(config), checkpoint=str(checkpoint))
    checkpoint = find_checkpoint(checkpoint)
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    number, root = count_photos(cfg, 'test')
    if dry_run:
        writes = {'logs': cfg.work_dir}
        if out is not None:
            writes['label maps'] = f'{out} ({number})'
        show_plan(
            reads={
                'config': config,
                'checkpoint': checkpoint,
                'test photos': f'{root} ({number})',
            },
            writes=writes,
            to_make=number,
        )
        return
    with Run('test', folder=Path(cfg.work_dir)) as run:
        from mmwsss.apis.train import run_test

        metrics = run_test(cfg, checkpoint, launcher=launcher, tta=tta, label_dir=out)
        run.note('metrics', {name: float(value) for name, value in metrics.items()})
        run.ok(count=number)
