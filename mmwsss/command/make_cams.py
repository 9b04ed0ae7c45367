"""``mmwsss make-cams``: what tools/make_cams.py does, by name."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    cfg_options_option,
    config_argument,
    data_option,
    device_option,
    dry_run_option,
    jobs_option,
    max_unreadable_option,
    out_option,
    overwrite_option,
    show_plan,
    trust_option,
    verb,
)
from mmwsss.errors import InputError

SPLITS = ('train', 'train_eval', 'val', 'test')


@verb(
    'make-cams',
    example='mmwsss make-cams sipe_r50_voc work_dirs/sipe_r50_voc --data data/VOC2012 '
    '--out work_dirs/cams',
)
@config_argument
@click.argument('checkpoint', type=FILE, required=False)
@out_option('Receives one .npz per photo.')
@data_option
@click.option(
    '--split',
    type=click.Choice(SPLITS),
    default='train',
    show_default=True,
    help='Whose photos, by the data loaders of the config.',
)
@click.option(
    '--list',
    'list_file',
    type=FILE,
    help="Image ids, one a line, instead of the split's own.",
)
@click.option('--kind', help="Kind of maps; default: the network's.")
@click.option(
    '--ir-labels', type=FILE, help="The photos' IR labels, for networks that take them."
)
@click.option(
    '--all-classes', is_flag=True, help='CAMs of every class, also of absent ones.'
)
@click.option(
    '--dtype',
    type=click.Choice(('float16', 'uint8')),
    default='float16',
    show_default=True,
    help='Of the stored maps.',
)
@click.option(
    '--import-npy',
    type=FILE,
    help="Folder of another repository's ID.npy files, instead of CHECKPOINT.",
)
@click.option(
    '--trust-pickle',
    is_flag=True,
    help='Unpickle those files, which can run any code they bring along.',
)
@jobs_option
@max_unreadable_option
@device_option
@overwrite_option('CAMs of other settings')
@cfg_options_option
@trust_option
@dry_run_option
def command(
    config: Path,
    checkpoint: Path | None,
    out: Path,
    data: Path | None,
    split: str,
    list_file: Path | None,
    kind: str | None,
    ir_labels: Path | None,
    all_classes: bool,
    dtype: str,
    import_npy: Path | None,
    trust_pickle: bool,
    jobs: int,
    max_unreadable: int,
    device: str | None,
    overwrite: bool,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Make CAMs of the photos of CONFIG with CHECKPOINT, a file or a work directory.

    Stopped at any moment, the same command goes on; what is there is left alone.
    Photos that cannot be read are listed in OUT/unreadable.txt and left out; exit code
    1 then.
    """
    from mmwsss.apis.cli import Counts
    from mmwsss.apis.make_cams import (
        CAMOptions,
        make_cams,
        missing_cams,
        with_all_classes,
    )
    from mmwsss.apis.photos import list_photos, say_left_out
    from mmwsss.command.found import changes, read_config
    from mmwsss.files import find_checkpoint

    if (checkpoint is None) == (import_npy is None):
        raise InputError('give either CHECKPOINT or --import-npy')
    cfg = read_config(config, cfg_options, data=data)
    found = list_photos(cfg, split=split, list_file=list_file)
    if all_classes:
        found = with_all_classes(found)
    options = CAMOptions(
        config=str(config),
        cfg_options=changes(config, cfg_options, data=data),
        checkpoint=None if checkpoint is None else find_checkpoint(checkpoint),
        import_dir=import_npy,
        trust_pickle=trust_pickle,
        kind=kind,
        ir_labels=ir_labels,
        all_classes=all_classes,
        out=out,
        dtype=dtype,
        device=device,
        num_classes=len(found.class_names),
    )
    missing = missing_cams(cfg, found, options, overwrite=overwrite)
    total = len(found.photos)
    if dry_run:
        show_plan(
            reads={
                'config': config,
                'maps from': options.checkpoint or import_npy,
                f'{split} photos': total,
            },
            writes={'CAMs': out},
            to_make=len(missing),
            there=total - len(missing),
        )
        return
    with Run('make-cams', folder=out) as run:
        from mmwsss.datasets.cam_store import CAMStore

        run.skipped(count=total - len(missing))
        counts = Counts()
        try:
            make_cams(
                cfg,
                found,
                options,
                jobs=jobs,
                overwrite=overwrite,
                counts=counts,
                max_unreadable=max_unreadable,
            )
        finally:
            # Also those that were made before something stopped it.
            store = CAMStore(out)
            for image_id in missing:
                if store.path(image_id).is_file():
                    run.ok(image_id)
            run.counts['failed'] += counts.failed
        if run.is_first_rank:
            say_left_out(out, counts)
    if counts.failed:
        raise SystemExit(1)
