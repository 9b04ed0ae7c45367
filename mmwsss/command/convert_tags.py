"""``mmwsss convert tags``: tags of other tools to the JSON of image labels."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    dry_run_option,
    overwrite_option,
    refuse_existing,
    show_plan,
    verb,
)

# Not imported from apis/tags, which needs the mm packages: --help is to be quick.
FORMATS = (
    'folders', 'csv', 'coco', 'voc', 'x-anylabeling', 'cvat', 'label-studio',
)  # fmt: skip


@verb(
    'tags',
    example='mmwsss convert tags photos/ --out image_labels.json\n'
    'mmwsss convert tags export.json --images photos/ --out image_labels.json',
)
@click.argument('source', type=FILE)
@click.option(
    '--images', type=FILE, help='Folder of the photos, where SOURCE does not hold them.'
)
@click.option('--out', type=FILE, required=True, help='The JSON of image labels.')
@click.option(
    '--format',
    'format_name',
    type=click.Choice(FORMATS),
    help='What SOURCE is; default: as it looks.',
)
@click.option('--classes', type=FILE, help='Text file with the classes, one a line.')
@click.option(
    '--drop-other-classes',
    is_flag=True,
    help='Leave tags out that are not among --classes.',
)
@click.option(
    '--shapes',
    is_flag=True,
    help='Also take the classes of boxes, polygons and masks.',
)
@click.option('--control', help='Label Studio: the name of the Choices.')
@click.option(
    '--no-object',
    multiple=True,
    default=('background',),
    show_default=True,
    metavar='TAG',
    help='A tag that means that nothing is there; may be given several times.',
)
@click.option(
    '--skip-missing', is_flag=True, help='Leave entries out whose photo is not there.'
)
@overwrite_option('a file that is there')
@dry_run_option
def command(
    source: Path,
    images: Path | None,
    out: Path,
    format_name: str | None,
    classes: Path | None,
    drop_other_classes: bool,
    shapes: bool,
    control: str | None,
    no_object: tuple[str, ...],
    skip_missing: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Tags from SOURCE to one JSON of image labels.

    SOURCE is a folder per class, a CSV (photo,class,class or a table of 0 and 1), a
    COCO JSON, a folder of VOC XML files, a folder of X-AnyLabeling or LabelMe JSON
    files, "CVAT for images 1.1" (XML or ZIP), or Label Studio's export "JSON".
    """
    from mmwsss.apis.tags import Tags, read_class_list, read_tags
    from mmwsss.datasets.image_labels import save_image_labels

    def read() -> Tags:
        tags = read_tags(
            source,
            photos=images,
            format_name=format_name,
            classes=read_class_list(classes) if classes else None,
            shapes=shapes,
            control=control,
            no_object=no_object,
            drop_other_classes=drop_other_classes,
            skip_missing=skip_missing,
        )
        for note in tags.notes:
            click.echo(f'note: {note}')
        return tags

    refuse_existing(out, overwrite=overwrite)
    if dry_run:
        tags = read()
        show_plan(
            reads={'tags': source},
            writes={'image labels': f'{out} ({len(tags.classes)} classes)'},
            to_make=len(tags.labels),
        )
        return
    with Run('convert tags', folder=None, file=out) as run:
        tags = read()
        save_image_labels(out, tags.classes, tags.labels)
        click.echo(f'wrote {out}: {len(tags.classes)} classes')
        run.ok(count=len(tags.labels))
        run.skipped(count=tags.skipped, reason='no entry or no photo')
