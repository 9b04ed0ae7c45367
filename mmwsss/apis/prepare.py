"""Image labels from where people have them, and a look at a data set on disk."""

import argparse
import io
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from mmwsss.apis.binary_data import add_binary_verbs, binary_command
from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.photo_check import check_photos
from mmwsss.apis.stages import available_cores
from mmwsss.apis.tags import FORMATS, Tags, read_class_list, read_tags
from mmwsss.apis.tags.collect import NO_OBJECT
from mmwsss.apis.tags.voc_xml import read_file
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.image_labels import load_image_labels, save_image_labels
from mmwsss.errors import InputError, tool
from mmwsss.files import read_json, whole_file

VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant',
    'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
# kind: (path below the root, what it is and how to get it)
LAYOUTS = {
    'voc': (
        (
            'JPEGImages',
            'the photos of VOC 2012: unpack VOCtrainval_11-May-2012.tar of the PASCAL '
            'VOC site, its VOCdevkit/VOC2012 is the root',
        ),
        ('Annotations', 'the XML files of the same archive; the labels come from them'),
        (
            'ImageSets/Segmentation/train_aug.txt',
            'the 10,582 ids of the augmented train set; it comes with SBD in the '
            'repositories of most segmentation toolboxes, one id a line',
        ),
        ('ImageSets/Segmentation/train.txt', 'a list of the same archive'),
        ('ImageSets/Segmentation/val.txt', 'a list of the same archive'),
        ('SegmentationClass', 'the masks of the same archive, for evaluation only'),
        ('image_labels.json', f'make it with: {tool("prepare_data")} voc ROOT'),
    ),
    'coco': (
        (
            'JPEGImages',
            'links to the photos of train2014 and val2014; made by: '
            f'{tool("prepare_data")} coco ROOT',
        ),
        ('ImageSets/Segmentation/train.txt', 'made by the same command'),
        ('ImageSets/Segmentation/val.txt', 'made by the same command'),
        ('SegmentationClass', 'masks for evaluation; the same command with --masks'),
        ('image_labels.json', 'made by the same command'),
    ),
    'photos': (),
    'folder': (
        (
            'image_labels.json',
            f'make it with: {tool("prepare_data")} tags (or csv, folders)',
        ),
    ),
}


def prepare_command() -> int:
    """Parse the verb and do it, say what was done."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the verb and its options say."""
    if args.verb == 'check':
        findings = check_dataset(args.kind, args.root)
        if args.fast and args.list is not None:
            raise InputError('--list needs photos to be opened; leave --fast out')
        if not args.fast and args.root.is_dir():
            # Of photos alone there is no layout to look at.
            photos = args.kind == 'photos'
            counts.ok, broken = check_photos(
                args.root if photos else photo_folder(args.root),
                workers=args.workers,
                list_file=args.list,
            )
            findings += broken
            print(f'opened {counts.ok} photos')
        for finding in findings:
            print(finding)
        print(f'{len(findings)} findings')
        counts.failed = len(findings)
        # What was looked at without opening photos.
        counts.ok = counts.ok or int(not findings)
        return
    if args.verb in ('crops', 'binary-masks'):
        binary_command(args, counts)
        return
    out = args.out or (args.root or args.source) / 'image_labels.json'
    if out.exists() and not args.overwrite:
        raise InputError(f'{out} exists already; add --overwrite to replace it')
    tags = _read(args)
    save_image_labels(out, tags.classes, tags.labels)
    print(f'wrote {out}: {len(tags.classes)} classes')
    for note in tags.notes:
        print(f'note: {note}')
    print(f'{len(tags.labels)} photos with labels, {tags.skipped} left out')
    counts.ok, counts.skipped = len(tags.labels), tags.skipped


def _read(args: argparse.Namespace) -> Tags:
    if args.verb == 'voc':
        return labels_from_voc(args.root)
    if args.verb == 'coco':
        return prepare_coco(args.root, masks=args.masks, overwrite=args.overwrite)
    if args.verb != 'tags':
        return read_tags(args.source, photos=args.root, format_name=args.verb)
    return read_tags(
        args.source,
        photos=args.root,
        format_name=args.format,
        classes=args.classes and read_class_list(args.classes),
        shapes=args.shapes,
        control=args.control,
        no_object=args.no_object,
        drop_other_classes=args.drop_other_classes,
        skip_missing=args.skip_missing,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and their options, and what they are for."""
    parser.description = (
        'Make the one JSON of image labels, cut crops with and without an '
        'object, or check a data set on disk.'
    )
    verbs = parser.add_subparsers(dest='verb', required=True)
    check = verbs.add_parser('check', help='say what is missing and how to get it')
    check.add_argument('kind', choices=sorted(LAYOUTS))
    check.add_argument('root', type=Path)
    check.add_argument(
        '--workers',
        type=int,
        default=available_cores(),
        help='processes that open photos (default: all cores, here %(default)s)',
    )
    check.add_argument(
        '--list',
        type=Path,
        metavar='FILE',
        help='receives the ids of photos that cannot be read, one a line: for exclude '
        'of a data set, and mmwsss train --exclude',
    )
    check.add_argument(
        '--fast', action='store_true', help='look at lists and names, open no photo'
    )
    helps = {
        'voc': 'from Annotations/*.xml (objects marked difficult count too)',
        'coco': 'from annotations/instances_{train,val}2014.json, with lists',
        'csv': 'from lines of: photo, class, class, ...',
        'folders': 'from a folder per class; the photos stay where they are',
        'tags': f'from a file or folder in any of: {", ".join(FORMATS)}',
    }
    for verb, text in helps.items():
        sub = verbs.add_parser(verb, help=text)
        if verb in ('voc', 'coco'):
            sub.add_argument('root', type=Path)
        else:
            sub.add_argument('source', type=Path)
            sub.add_argument(
                '--images',
                dest='root',
                type=Path,
                required=verb == 'csv',
                help='folder of the photos, where they do not lie in the source',
            )
        sub.add_argument(
            '--out', type=Path, help='default: image_labels.json beside the photos'
        )
        sub.add_argument('--overwrite', action='store_true')
        if verb == 'coco':
            sub.add_argument('--masks', action='store_true', help='for evaluation')
        if verb == 'tags':
            _add_tag_arguments(sub)
    add_binary_verbs(verbs)


def _add_tag_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--format', choices=sorted(FORMATS), help='default: as the source looks'
    )
    parser.add_argument(
        '--classes', type=Path, help='text file with the classes, one a line'
    )
    parser.add_argument(
        '--drop-other-classes',
        action='store_true',
        help='leave tags out that are not among --classes',
    )
    parser.add_argument(
        '--shapes',
        action='store_true',
        help='also take the classes of boxes, polygons and masks',
    )
    parser.add_argument('--control', help='Label Studio: the name of the Choices')
    parser.add_argument(
        '--no-object',
        nargs='+',
        default=NO_OBJECT,
        metavar='TAG',
        help='tags that mean that nothing is there (default: background)',
    )
    parser.add_argument(
        '--skip-missing',
        action='store_true',
        help='leave entries out whose photo is not there',
    )


def labels_from_voc(root: Path) -> Tags:
    """VOC's 20 classes from the XML annotations of every photo that has one."""
    files = sorted(_need_folder(root / 'Annotations', 'voc', root).glob('*.xml'))
    if not files:
        raise InputError(f'{root / "Annotations"} holds no XML file')
    labels = {}
    for file in tqdm(files, unit='photo', disable=None):
        names = set(read_file(file)[1])
        unknown = sorted(names - set(VOC_CLASSES))
        if unknown:
            raise InputError(
                f'{file} names the unknown class {unknown[0]!r}; correct it there '
                f'(VOC has {", ".join(VOC_CLASSES)})'
            )
        labels[file.stem] = [name for name in VOC_CLASSES if name in names]
    return Tags(classes=VOC_CLASSES, labels=labels, skipped=0, notes=())


def prepare_coco(root: Path, *, masks: bool, overwrite: bool = False) -> Tags:
    """COCO 2014 in VOC layout: linked photos, lists, labels, masks if asked for.

    Args:
        root: Of the data set, as it is unpacked.
        masks: Also draw the masks.
        overwrite: Replace other lists and masks that are there.

    Raises:
        InputError: Something is missing, or would be replaced.
    """
    classes: tuple[str, ...] = ()
    labels: dict[str, list[str]] = {}
    for split in ('train', 'val'):
        content = _read_coco(root, split)
        categories = sorted(content['categories'], key=lambda c: c['id'])
        classes = tuple(c['name'] for c in categories)
        index = {c['id']: number for number, c in enumerate(categories, start=1)}
        objects = defaultdict(list)
        for annotation in content['annotations']:
            objects[annotation['image_id']].append(annotation)
        ids = []
        for image in tqdm(content['images'], unit='photo', disable=None):
            image_id = Path(image['file_name']).stem
            present = {index[o['category_id']] for o in objects[image['id']]}
            labels[image_id] = [classes[i - 1] for i in sorted(present)]
            ids.append(image_id)
            _link(root / f'{split}2014' / image['file_name'], root / 'JPEGImages')
            if masks:
                mask = _draw_coco_mask(image, objects[image['id']], index)
                buffer = io.BytesIO()
                mask.save(buffer, 'PNG')
                path = root / 'SegmentationClass' / f'{image_id}.png'
                _write_new(path, buffer.getvalue(), overwrite=overwrite)
        listing = ''.join(f'{image_id}\n' for image_id in sorted(ids))
        path = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
        _write_new(path, listing.encode(), overwrite=overwrite)
    return Tags(classes=classes, labels=labels, skipped=0, notes=())


def _read_coco(root: Path, split: str) -> dict:
    path = root / 'annotations' / f'instances_{split}2014.json'
    if not path.is_file():
        raise InputError(
            f'{path.absolute()} does not exist; unpack '
            f'annotations_trainval2014.zip of the COCO site into {root}'
        )
    content = read_json(path)
    if not isinstance(content, dict) or not (
        {'images', 'annotations', 'categories'} <= content.keys()
    ):
        raise InputError(f'{path} is no COCO instances file')
    return content


def _link(photo: Path, folder: Path) -> None:
    if not photo.is_file():
        raise InputError(
            f'the photo {photo} does not exist; unpack train2014.zip and val2014.zip '
            f'into {photo.parent.parent}'
        )
    folder.mkdir(exist_ok=True)
    link = folder / photo.name
    if not link.exists():
        link.symlink_to(os.path.relpath(photo, folder))


def _write_new(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file, unless it is there already; refuse to replace another."""
    if path.is_file():
        if path.read_bytes() == content:
            return
        if not overwrite:
            raise InputError(
                f'{path} is there already and is another; keep it elsewhere, or add '
                '--overwrite to replace it'
            )
    with whole_file(path) as stream:
        stream.write(content)


def _draw_coco_mask(image: dict, objects: Iterable[dict], index: dict) -> Image.Image:
    """Objects from large to small, so that small ones stay visible; crowds are void."""
    mask = Image.new('L', (image['width'], image['height']), 0)
    for o in sorted(objects, key=lambda o: -o['area']):
        value = 255 if o.get('iscrowd') else index[o['category_id']]
        shape = o['segmentation']
        if isinstance(shape, dict):
            crowd = _decode_counts(shape)
            mask.paste(value, mask=Image.fromarray(crowd * np.uint8(255)))
            continue
        for polygon in shape:
            if len(polygon) >= 6:
                ImageDraw.Draw(mask).polygon(polygon, fill=value)
    return mask


def _decode_counts(shape: dict) -> np.ndarray:
    """COCO's uncompressed run lengths, column by column, starting with background."""
    if not isinstance(shape['counts'], list):
        raise InputError('compressed RLE is not part of instances_*2014.json')
    height, width = shape['size']
    values = np.arange(len(shape['counts'])) % 2
    flat = np.repeat(values, shape['counts']).astype(np.uint8)
    return flat.reshape(width, height).T


def check_dataset(kind: str, root: Path) -> list[str]:
    """What is missing or wrong below the root, one sentence each."""
    findings = []
    if not root.is_dir():
        findings.append(f'the folder {root.absolute()} does not exist; make it')
    for place, how_to_get in LAYOUTS[kind]:
        path = root / place
        if not path.exists():
            findings.append(f'{path.absolute()} is missing: {how_to_get}')
    labels = root / 'image_labels.json'
    if not labels.exists():
        return findings
    try:
        known = load_image_labels(labels)
    except InputError as error:
        return [*findings, str(error)]
    used = {index for indices in known.labels.values() for index in indices}
    findings += [
        f'the class {name!r} of {labels} is in no photo'
        for index, name in enumerate(known.classes)
        if index not in used
    ]
    for file in sorted((root / 'ImageSets' / 'Segmentation').glob('*.txt')):
        findings += _check_list(file, root, set(known.labels))
    return findings


def photo_folder(root: Path) -> Path:
    """Where the photos of a data set lie: its JPEGImages, or the root itself."""
    folder = root / 'JPEGImages'
    return folder if folder.is_dir() else root


def _check_list(file: Path, root: Path, known: set[str]) -> list[str]:
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [f'the list {file} cannot be read ({error})']
    lines = [line.strip() for line in lines if line.strip()]
    ids = [line if line in known else line.split()[0] for line in lines]
    wanted = {f'an entry in {root / "image_labels.json"}': known}
    folders = {'JPEGImages': 'a photo'}
    if file.name in ('train.txt', 'val.txt'):  # only these are evaluated
        folders['SegmentationClass'] = 'a mask'
    for folder, what in folders.items():
        if (root / folder).is_dir():
            wanted[f'{what} in {root / folder}'] = dict(find_photos(root / folder))
    findings = []
    for what, there in wanted.items():
        missing = [i for i in ids if i not in there]
        if missing:
            findings.append(
                f'{len(missing)} of {len(ids)} ids of {file} do not have {what}, the '
                f'first is {missing[0]!r}'
            )
    return findings


def _need_folder(folder: Path, kind: str, root: Path) -> Path:
    if not folder.is_dir():
        raise InputError(
            f'the folder {folder.absolute()} does not exist; what must lie where says: '
            f'{tool("prepare_data")} check {kind} {root}'
        )
    return folder
