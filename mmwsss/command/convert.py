"""``mmwsss convert``: tags from other formats, masks to annotators and back."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    dry_run_option,
    out_option,
    overwrite_option,
    refuse_existing,
    show_plan,
    verb,
)

# Subcommand -> what it does; that of another module is imported when it is called.
_TAGS = 'tags'
_FORMAT_NAMES = ('voc', 'coco', 'labelme', 'x-anylabeling', 'cvat', 'label-studio')
_classes_option = click.option(
    '--classes',
    type=FILE,
    required=True,
    help='Class names, one a line (as classes.txt beside the masks), or image labels.',
)
_format_option = click.option(
    '--format',
    'format_name',
    type=click.Choice(_FORMAT_NAMES),
    required=True,
    help='Of the annotation tool.',
)


class Conversions(click.Group):
    """A group that imports the conversion of tags when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All conversions."""
        return [_TAGS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One conversion; None for an unknown one."""
        if name == _TAGS:
            from mmwsss.command.convert_tags import command as tags

            return tags
        return super().get_command(ctx, name)


@click.group(cls=Conversions)
def command() -> None:
    """Tags from other formats; masks to annotators and back."""


@verb(
    'masks',
    example='mmwsss convert masks masks/ --format cvat --classes masks/classes.txt '
    '--images photos/ --out cvat/',
)
@click.argument('masks', type=FILE)
@_format_option
@_classes_option
@click.option('--images', type=FILE, help='Folder of the photos, for their names.')
@out_option('Receives the files of the annotation tool.')
@click.option(
    '--ids', type=FILE, help='Image ids, one a line; default: every mask in the folder.'
)
@click.option(
    '--polygons', is_flag=True, help='Polygons where the format has masks as well.'
)
@click.option(
    '--tolerance',
    type=float,
    default=0.0,
    show_default=True,
    help='Pixels that the outline of a polygon may move, for fewer corners to drag.',
)
@click.option(
    '--min-area',
    type=int,
    default=0,
    show_default=True,
    help='Leave out regions of fewer pixels; they become background.',
)
@click.option(
    '--ignore',
    type=click.Choice(('label', 'drop')),
    default='label',
    show_default=True,
    help='Undecided pixels (255): a label "ignore" that comes back as 255, or left '
    'out, which makes them background.',
)
@click.option(
    '--reliability', type=FILE, help='Folder of reliability PNGs, for scores of shapes.'
)
@click.option(
    '--prefix',
    default='',
    help="Label Studio: in front of the photos' paths, such as "
    '/data/local-files/?d=photos/.',
)
@overwrite_option('what is in the folder')
@dry_run_option
def masks_command(
    masks: Path,
    format_name: str,
    classes: Path,
    images: Path | None,
    out: Path,
    ids: Path | None,
    polygons: bool,
    tolerance: float,
    min_area: int,
    ignore: str,
    reliability: Path | None,
    prefix: str,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Masks in the format of an annotation tool, to be corrected there.

    MASKS is a folder of ID.png, or what `mmwsss label` wrote. Every connected region
    becomes a shape; with holes, and exactly unless --tolerance says otherwise.
    """
    from mmwsss.apis.annotations import ExportOptions, export_masks, masks_in

    options = ExportOptions(
        format_name=format_name,
        classes=_class_names(classes),
        polygons=polygons,
        tolerance=tolerance,
        min_area=min_area,
        ignore=ignore == 'label',
        prefix=prefix,
    )
    names = masks_in(masks) if ids is None else _lines(ids)
    if dry_run:
        show_plan(reads={'masks': masks}, writes={format_name: out}, to_make=len(names))
        return
    refuse_existing(out, overwrite=overwrite)
    with Run('convert masks', folder=out) as run:
        for name in export_masks(
            masks, out, options, photos=images, ids=names, reliability=reliability
        ):
            run.ok(name)


@verb(
    'annotations',
    example='mmwsss convert annotations corrected.xml --format cvat '
    '--classes masks/classes.txt --images photos/ --out strong/',
)
@click.argument('source', type=FILE)
@_format_option
@_classes_option
@click.option('--images', type=FILE, help='Folder of the photos; sizes must fit.')
@out_option('Receives SegmentationClass/ID.png, list.txt and image_labels.json.')
@overwrite_option('what is in the folder')
@dry_run_option
def annotations_command(
    source: Path,
    format_name: str,
    classes: Path,
    images: Path | None,
    out: Path,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """What an annotator corrected, as masks: strong labels for the next round."""
    from mmwsss.apis.annotations import import_annotations

    if dry_run:
        show_plan(reads={format_name: source}, writes={'masks': out}, to_make=1)
        return
    refuse_existing(out, overwrite=overwrite)
    with Run('convert annotations', folder=out) as run:
        for name in import_annotations(
            source,
            out,
            format_name=format_name,
            classes=_class_names(classes),
            photos=images,
        ):
            run.ok(name)


def _lines(path: Path) -> list[str]:
    """Ids, one a line; they may have spaces inside."""
    from mmwsss.errors import InputError

    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'the list {path} cannot be read: {error}') from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f'the list {path} names no image')
    return found


def _class_names(path: Path) -> list[str]:
    """K names from a list, or from image labels."""
    from mmwsss.apis.label_folders import read_class_names
    from mmwsss.datasets.image_labels import load_image_labels

    if path.suffix in ('.json', '.gz'):
        return list(load_image_labels(path).classes)
    return read_class_names(path)[1:]


command.add_command(masks_command)
command.add_command(annotations_command)
