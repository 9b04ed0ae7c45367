"""``mmwsss doctor``: a data set before training, and the installation."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    cfg_options_option,
    data_option,
    overwrite_option,
    refuse_existing,
    verb,
)
from mmwsss.errors import InputError


@verb(
    'doctor',
    example='mmwsss doctor                            # the installation alone\n'
    'mmwsss doctor data/mine --json doctor.json\n'
    'mmwsss doctor photos/ --labels tags.json --split train=train.txt '
    '--split val=val.txt\n'
    'mmwsss doctor --config clipdino_refine_voc --data data/VOC2012',
)
@click.argument('photos', type=FILE, required=False)
@click.option(
    '--labels',
    'image_labels',
    type=FILE,
    help="The JSON of image labels; default: the folder's image_labels.json.",
)
@click.option(
    '--masks',
    type=FILE,
    help="Folder of masks; default: the folder's SegmentationClass.",
)
@click.option(
    '--split',
    'lists',
    multiple=True,
    metavar='NAME=LIST',
    help='A list of ids, one a line; names with train in front are trained on; may be '
    "given several times. Default: the folder's ImageSets/Segmentation.",
)
@click.option(
    '--crop-size', type=int, help='Side of the square that training crops to.'
)
@click.option('--config', help='Look at the data sets and weights of a config instead.')
@data_option
@cfg_options_option
@click.option('--json', 'json_file', type=FILE, help='Write all findings to this file.')
@overwrite_option('the file of --json')
@click.option('--jobs', type=int, help='Processes; default: what pays off.')
@click.option(
    '--fast', is_flag=True, help='Look at names, lists and tags; open no photo.'
)
@click.option(
    '--only-data', is_flag=True, help='Leave the installation out of the report.'
)
def command(
    photos: Path | None,
    image_labels: Path | None,
    masks: Path | None,
    lists: tuple[str, ...],
    crop_size: int | None,
    config: str | None,
    data: Path | None,
    cfg_options: tuple[str, ...],
    json_file: Path | None,
    overwrite: bool,
    jobs: int | None,
    fast: bool,
    only_data: bool,
) -> None:
    """Check a data set before training, and the installation.

    PHOTOS is a folder of photos or a data set in VOC layout; without it and without
    --config the installation alone is checked. Each finding says what it means for
    weakly supervised segmentation and what to do. Exit code 1 with an error among
    them; warnings and notes are 0. The last line counts photos and errors. Nothing
    is written without --json.
    """
    from tqdm import tqdm

    from mmwsss.apis.doctor import run_doctor
    from mmwsss.files import write_json

    if json_file is not None:
        refuse_existing(json_file, overwrite=overwrite, option='--json')
    content = None
    if config is not None:
        from mmwsss.command.found import find_config, read_config

        found = read_config(find_config(config), cfg_options, data=data)
        content = found.to_dict()
    elif data is not None or cfg_options:
        raise InputError('--data and --cfg-options need a --config; give PHOTOS alone')
    named_lists = _parsed(lists)
    with Run('doctor', folder=None, file=json_file) as run:
        report = run_doctor(
            folder=photos,
            image_labels=image_labels,
            masks=masks,
            lists=named_lists,
            crop=None if crop_size is None else (crop_size, crop_size),
            config=content,
            open_photos=not fast,
            installation=not only_data,
            jobs=jobs,
            progress=lambda done, total: tqdm(
                done, total=total, unit='photo', disable=None
            ),
        )
        click.echo(report.text())
        for finding in report.findings:
            run.note('finding', {name: getattr(finding, name) for name in _LOGGED})
        if json_file is not None:
            write_json(json_file, report.content())
        # Of the installation alone there is one thing to look at.
        run.ok(count=report.facts.get('photos', 1))
        run.counts['failed'] += report.number('error')
    if report.number('error'):
        raise SystemExit(1)


_LOGGED = ('code', 'severity', 'what', 'count')


def _parsed(lists: tuple[str, ...]) -> dict[str, Path] | None:
    """Split name -> list."""
    found = {}
    for text in lists:
        name, sign, path = text.partition('=')
        if not (name and sign and path) or name in found:
            raise InputError(
                f'--split {text!r} must be NAME=LIST with a name of its own, for '
                'example train=train.txt'
            )
        found[name] = Path(path)
    return found or None
