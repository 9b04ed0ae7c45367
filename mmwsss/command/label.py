"""``mmwsss label``: a folder of photos and their tags to masks."""

from pathlib import Path

import click

from mmwsss.command.common import (
    FILE,
    Run,
    cfg_options_option,
    config_argument,
    device_option,
    dry_run_option,
    jobs_option,
    out_option,
    overwrite_option,
    show_plan,
    trust_option,
    verb,
)


@verb(
    'label',
    example='mmwsss label work_dirs/mine work_dirs/mine my_photos/photos '
    '--tags my_photos/image_labels.json --out my_masks',
)
@config_argument
@click.argument('checkpoint', type=FILE)
@click.argument('photos', type=FILE)
@click.option(
    '--tags',
    type=FILE,
    help='What the photos show: image-label JSON, CSV, COCO, VOC XML, X-AnyLabeling, '
    'CVAT, Label Studio, or a folder per class. Without it the network alone decides.',
)
@out_option('Receives masks, reliability, overlays and manifest.jsonl.')
@click.option(
    '--background',
    metavar='RULE',
    help='Score of the background: a threshold such as 0.25, own, own*0.8, power:4 or '
    'otsu, or auto: a threshold that suits the photos most, chosen without masks; '
    'default: own where there is one, else 0.25.',
)
@click.option(
    '--refine',
    multiple=True,
    metavar='STEP',
    help='A refiner, for example PAMR or "DenseCRF(gt_prob=0.7)"; may be given several '
    'times, in order.',
)
@click.option('--kind', help="Kind of maps; default: the network's own.")
@click.option('--low', type=float, help='A best class score up to here is background.')
@click.option('--high', type=float, help='From here on it is that class; 255 between.')
@click.option(
    '--max-side',
    type=int,
    default=1024,
    show_default=True,
    help='Longest side in pixels that the network sees; 0 for no limit. Masks have the '
    "photo's own size.",
)
@click.option('--no-overlays', is_flag=True, help='Leave out the pictures to look at.')
@device_option
@jobs_option
@cfg_options_option
@overwrite_option('masks of other settings')
@trust_option
@dry_run_option
def command(
    config: Path,
    checkpoint: Path,
    photos: Path,
    tags: Path | None,
    out: Path,
    background: str | None,
    refine: tuple[str, ...],
    kind: str | None,
    low: float | None,
    high: float | None,
    max_side: int,
    no_overlays: bool,
    device: str | None,
    jobs: int,
    cfg_options: tuple[str, ...],
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Photos and their tags to masks, reliability and pictures.

    CHECKPOINT is of the network in CONFIG, a file or a work directory; a work
    directory does for CONFIG as well. Run again, only new and changed photos are looked
    at; photos that cannot be read are listed and left out. OUT/manifest.jsonl says of
    each photo which classes its mask shows, how sure they are, and whether they
    contradict the tags; OUT/look_first.txt has the photos worst first.
    """
    from mmwsss.apis.label import MANIFEST, Labelling, LabellingOptions, tags_from
    from mmwsss.apis.label_rules import BackgroundRule, parse_refiner
    from mmwsss.command.found import parse_options

    labelling = Labelling(
        LabellingOptions(
            photos=photos,
            out=out,
            config=config,
            checkpoint=checkpoint,
            cfg_options=parse_options(cfg_options),
            kind=kind,
            background=None
            if background in (None, 'auto')
            else BackgroundRule.parse(background),
            choose_threshold=background == 'auto',
            refiners=[parse_refiner(text) for text in refine],
            low=low,
            high=high,
            max_side=max_side or None,
            device=device,
            overlays=not no_overlays,
        ),
        None if tags is None else tags_from(tags, photos),
    )
    if dry_run:
        to_make = labelling.plan()
        reads = {'photos': photos, 'checkpoint': checkpoint}
        if tags is not None:
            reads['tags'] = tags
        show_plan(
            reads=reads,
            writes={'masks and manifest': out},
            to_make=to_make,
            there=labelling.there,
        )
        return
    with Run('label', folder=out) as run:
        flagged = 0
        for record in labelling.run(jobs=jobs, overwrite=overwrite):
            if record.state == 'ok':
                run.ok(record.id)
                flagged += record.flagged
            elif record.state == 'unreadable':
                run.failed(record.photo, reason=record.reason)
            elif record.state == 'untagged':
                run.skipped(record.photo, reason='there are no tags for it')
        run.skipped(count=labelling.there)
        if background == 'auto':
            click.echo(labelling.background.source)
        if flagged:
            click.echo(f'{flagged} masks contradict their tags: {out / MANIFEST}')
