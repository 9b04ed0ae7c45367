"""Image labels from where people have them, and a look at a data set on disk."""

import argparse
import csv
import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from mmwsss.apis.binary_data import add_binary_verbs, binary_command
from mmwsss.apis.photo_check import check_photos
from mmwsss.apis.stages import available_cores
from mmwsss.datasets.image_label_dataset import PHOTO_SUFFIXES, find_photos
from mmwsss.datasets.image_labels import load_image_labels, save_image_labels
from mmwsss.errors import InputError
from mmwsss.files import read_json, write_text

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
        ('image_labels.json', 'make it with: python tools/prepare_data.py voc ROOT'),
    ),
    'coco': (
        (
            'JPEGImages',
            'links to the photos of train2014 and val2014; made by: '
            'python tools/prepare_data.py coco ROOT',
        ),
        ('ImageSets/Segmentation/train.txt', 'made by the same command'),
        ('ImageSets/Segmentation/val.txt', 'made by the same command'),
        ('SegmentationClass', 'masks for evaluation; the same command with --masks'),
        ('image_labels.json', 'made by the same command'),
    ),
    'folder': (
        (
            'image_labels.json',
            'make it with: python tools/prepare_data.py csv or folders',
        ),
    ),
}


def prepare_command() -> int:
    """Parse the verb and do it; the last line counts what was done."""
    args = _parse()
    if args.verb == 'check':
        findings = check_dataset(args.kind, args.root)
        if not args.fast and args.root.is_dir():
            count, broken = check_photos(photo_folder(args.root), workers=args.workers)
            findings += broken
            print(f'opened {count} photos')
        for finding in findings:
            print(finding)
        print(f'{len(findings)} findings')
        return 1 if findings else 0
    if args.verb in ('crops', 'binary-masks'):
        return binary_command(args)
    out = args.out or args.root / 'image_labels.json'
    if out.exists() and not args.overwrite:
        raise InputError(f'{out} exists already; add --overwrite to replace it')
    if args.verb == 'voc':
        classes, labels, skipped = labels_from_voc(args.root)
    elif args.verb == 'coco':
        classes, labels, skipped = prepare_coco(args.root, masks=args.masks)
    elif args.verb == 'csv':
        classes, labels, skipped = labels_from_csv(args.file, args.root)
    else:
        classes, labels, skipped = labels_from_folders(args.root)
    save_image_labels(out, classes, labels)
    print(f'wrote {out}: {len(classes)} classes')
    if args.verb == 'csv' and skipped:
        print(_without_a_line(args.root, labels, args.file))
    print(f'{len(labels)} ok, {skipped} skipped, 0 failed')
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='prepare_data.py',
        description='Make the one JSON of image labels, cut crops with and without an '
        'object, or check a data set on disk.',
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
        '--fast', action='store_true', help='look at lists and names, open no photo'
    )
    helps = {
        'voc': 'from Annotations/*.xml (objects marked difficult count too)',
        'coco': 'from annotations/instances_{train,val}2014.json, with lists',
        'csv': 'from lines of: photo, class, class, ...',
        'folders': 'from a folder per class; the photos stay where they are',
    }
    for verb, text in helps.items():
        sub = verbs.add_parser(verb, help=text)
        if verb == 'csv':
            sub.add_argument('file', type=Path)
            sub.add_argument('--images', dest='root', type=Path, required=True)
        else:
            sub.add_argument('root', type=Path)
        sub.add_argument('--out', type=Path, help='default: ROOT/image_labels.json')
        sub.add_argument('--overwrite', action='store_true')
        if verb == 'coco':
            sub.add_argument('--masks', action='store_true', help='for evaluation')
    add_binary_verbs(verbs)
    return parser.parse_args()


def labels_from_voc(root: Path) -> tuple[tuple[str, ...], dict, int]:
    """VOC's 20 classes from the XML annotations of every photo that has one."""
    files = sorted(_need_folder(root / 'Annotations', 'voc', root).glob('*.xml'))
    if not files:
        raise InputError(f'{root / "Annotations"} holds no XML file')
    labels = {}
    for file in tqdm(files, unit='photo', disable=None):
        try:
            objects = ElementTree.parse(file).iterfind('object/name')
            names = {(element.text or '').strip() for element in objects}
        except (ElementTree.ParseError, OSError) as error:
            raise InputError(f'{file} is no XML ({error}); replace it') from None
        unknown = sorted(names - set(VOC_CLASSES))
        if unknown:
            raise InputError(
                f'{file} names the unknown class {unknown[0]!r}; correct it there '
                f'(VOC has {", ".join(VOC_CLASSES)})'
            )
        labels[file.stem] = [name for name in VOC_CLASSES if name in names]
    return VOC_CLASSES, labels, 0


def labels_from_csv(file: Path, images: Path) -> tuple[tuple[str, ...], dict, int]:
    """Photo names with classes; photos of the folder without a line are skipped.

    A first line whose first cell has no photo's suffix is a header. Photos may be
    named from the folder, from the CSV's place or from here; ``background`` and no
    class at all mean the same.
    """
    photos = dict(find_photos(_existing(images)))
    labels: dict[str, list[str]] = {}
    try:
        with open(file, newline='', encoding='utf-8-sig') as stream:
            rows = [[c.strip() for c in row] for row in csv.reader(stream) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f'{file} cannot be read as CSV ({error}); save it as UTF-8 text with commas'
        ) from None
    for number, (name, *classes) in enumerate(rows, start=1):
        _check_commas(name, classes, number, file)
        image_id = _find_photo(name, images, file, photos)
        if image_id is None:
            if number == 1 and Path(name).suffix.lower() not in PHOTO_SUFFIXES:
                continue
            raise InputError(
                f'line {number} of {file} names {name!r}, which is not in {images}; '
                'correct the name or take the line out'
            )
        known = labels.setdefault(image_id, [])
        new = dict.fromkeys(classes)
        known += [c for c in new if c not in ('', 'background', *known)]
    return _sorted_classes(labels), labels, len(photos) - len(labels)


def _without_a_line(images: Path, labels: dict, file: Path) -> str:
    names = [name for image_id, name in find_photos(images) if image_id not in labels]
    first = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    return (
        f'{len(names)} photos of {images} have no line in {file} ({first}); add lines '
        '(the name alone for a photo without objects), or leave these photos out of '
        'training by skip_unlabelled=True in the data set of the config'
    )


def _check_commas(name: str, classes: list[str], number: int, file: Path) -> None:
    for separator in (';', '\t'):
        if not classes and separator in name:
            raise InputError(
                f'line {number} of {file} has {separator!r} instead of commas '
                f'({name!r}); write: photo,class,class'
            )


def _find_photo(name: str, images: Path, file: Path, photos: dict) -> str | None:
    for base in (images, file.parent, Path()):
        path = os.path.relpath(base / name, images).replace(os.sep, '/')
        stem, suffix = os.path.splitext(path)
        image_id = stem if suffix.lower() in PHOTO_SUFFIXES else path
        if image_id in photos:
            return image_id
    return None


def labels_from_folders(root: Path) -> tuple[tuple[str, ...], dict, int]:
    """A folder per class; ``background`` holds photos without any object."""
    labels = {}
    for image_id, file in find_photos(_existing(root)):
        if image_id.count('/') != 1:
            raise InputError(
                f'the photo {root / file} does not lie directly in a class folder of '
                f'{root}; move it into one ("background" for photos without objects)'
            )
        folder = image_id.partition('/')[0]
        labels[image_id] = [] if folder == 'background' else [folder]
    if not labels:
        raise InputError(f'{root} holds no folder with photos; make one per class')
    return _sorted_classes(labels), labels, 0


def prepare_coco(root: Path, *, masks: bool) -> tuple[tuple[str, ...], dict, int]:
    """COCO 2014 in VOC layout: linked photos, lists, labels, masks if asked for."""
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
                folder = root / 'SegmentationClass'
                folder.mkdir(exist_ok=True)
                mask.save(folder / f'{image_id}.png')
        write_text(
            root / 'ImageSets' / 'Segmentation' / f'{split}.txt',
            '\n'.join(sorted(ids)) + '\n',
        )
    return classes, labels, 0


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


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f'the folder {folder.absolute()} does not exist')
    return folder


def _need_folder(folder: Path, kind: str, root: Path) -> Path:
    if not folder.is_dir():
        raise InputError(
            f'the folder {folder.absolute()} does not exist; what must lie where says: '
            f'python tools/prepare_data.py check {kind} {root}'
        )
    return folder


def _sorted_classes(labels: dict[str, list[str]]) -> tuple[str, ...]:
    classes = sorted({name for names in labels.values() for name in names})
    if not classes:
        raise InputError('no photo has a class; at least one is needed')
    return tuple(classes)
