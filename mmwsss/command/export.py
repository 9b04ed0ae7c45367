"""``mmwsss export``: a trained segmentor as ONNX."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    cfg_options_option,
    config_argument,
    data_option,
    dry_run_option,
    out_option,
    overwrite_option,
    refuse_existing,
    show_plan,
    trust_option,
    verb,
)


@verb(
    'export',
    example='mmwsss export deeplabv3_r101_voc work_dirs/deeplabv3_r101_voc '
    '--photo photo.jpg --out model.onnx',
)
@config_argument
@click.argument('checkpoint', type=FILE)
@out_option('The file to write, *.onnx.')
@click.option(
    '--photo',
    type=FILE,
    help="Compared with torch on this photo; default: the data set's first.",
)
@click.option(
    '--size',
    type=int,
    nargs=2,
    metavar='HEIGHT WIDTH',
    help='Take photos of this size alone; default: any, where the network allows.',
)
@data_option
@overwrite_option('the file')
@cfg_options_option
@trust_option
@dry_run_option
def command(
    config: Path,
    checkpoint: Path,
    out: Path,
    photo: Path | None,
    size: tuple[int, int] | None,
    data: Path | None,
    overwrite: bool,
    cfg_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Write the segmentor of CONFIG as ONNX; CHECKPOINT is a file or a work directory.

    Needs pip install 'mmwsss[export]'. Class list and palette are in the file's
    metadata; what onnxruntime makes of a photo is compared with torch.
    """
    from mmwsss.command.found import read_config
    from mmwsss.files import find_checkpoint

    cfg = read_config(config, cfg_options, data=data)
    checkpoint = find_checkpoint(checkpoint)
    refuse_existing(out, overwrite=overwrite)
    if dry_run:
        show_plan(
            reads={
                'config': config,
                'checkpoint': checkpoint,
                'photo': photo or "the data set's first",
            },
            writes={'ONNX': out},
            to_make=1,
        )
        return
    with Run('export', folder=out.parent) as run:
        from mmwsss.apis.export import export_onnx

        done = export_onnx(cfg, checkpoint, out, photo=photo, size=size)
        shape = ' x '.join(map(str, done.shape))
        print(f'written: {done.path}, image {shape}, {len(done.classes)} classes')
        for check in done.checks:
            print(f'onnxruntime against torch, {check}')
            run.note('check', check._asdict())
        for note in done.notes:
            print(f'note: {note}')
        run.ok(str(out))
