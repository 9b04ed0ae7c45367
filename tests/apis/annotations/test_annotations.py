"""Masks to every format and back, and files as the tools themselves write them."""

import base64
import io
import json
import math
import re
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mmwsss.apis.annotations import (
    FORMATS,
    ExportOptions,
    export_masks,
    import_annotations,
)
from mmwsss.apis.annotations.outlines import ring_area, rings_of
from mmwsss.apis.annotations.shapes import regions_of
from mmwsss.command.convert import command
from mmwsss.errors import InputError

CLASSES = ('cat', 'größe & "x"')
FORMS = [(name, polygons) for name in FORMATS for polygons in (False, True)]


def label_maps():
    """One map for each thing that goes wrong elsewhere."""
    generator = np.random.default_rng(0)
    holes = np.zeros((21, 17), np.uint8)
    for inset in range(8):
        holes[inset : 21 - inset, inset : 17 - inset] = (inset + 1) % 2
    holes[10, 8] = 2
    corners = np.zeros((6, 7), np.uint8)
    corners[[0, 1, 2, 3], [0, 1, 2, 3]] = 1
    corners[[0, 1, 2, 3], [3, 2, 1, 0]] = 1
    parts = np.zeros((9, 33), np.uint8)
    parts[1:8:3, ::5] = 2
    pixel = np.zeros((5, 4), np.uint8)
    pixel[4, 3] = 1
    return {
        'nothing': np.zeros((7, 5), np.uint8),
        'one pixel': pixel,
        'all of it': np.full((3, 8), 2, np.uint8),
        'sub/only ignored': np.full((4, 4), 255, np.uint8),
        'holes in holes': holes,
        'corners alone': corners,
        'sub/teile ä.b': parts,
        'single': np.ones((1, 1), np.uint8),
        'noise': generator.choice(np.array([0, 1, 2, 255], np.uint8), (19, 23)),
    }


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """Folders of masks, photos and reliability."""
    root = tmp_path_factory.mktemp('masks')
    for name, label in label_maps().items():
        for folder, values, suffix in (
            ('masks', label, '.png'),
            ('Reliability', np.full_like(label, 51), '.png'),
            ('photos', np.stack([label] * 3, 2), '.jpg'),
        ):
            path = root / folder / f'{name}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return root


def export(case, out, name, **options):
    options = ExportOptions(format_name=name, classes=CLASSES, **options)
    return list(export_masks(case / 'masks', out, options, photos=case / 'photos'))


def back(source, out, name, case=None):
    ids = import_annotations(
        source,
        out,
        format_name=name,
        classes=CLASSES,
        photos=None if case is None else case / 'photos',
    )
    return {
        i: np.array(Image.open(out / f'SegmentationClass/{i}.png')) for i in list(ids)
    }


def expected(name, *, ignore=True):
    maps = label_maps()
    if not ignore:
        maps = {k: np.where(v == 255, 0, v) for k, v in maps.items()}
    if name == 'label-studio':
        # Its files do not say how large a photo without regions is.
        maps = {k: v for k, v in maps.items() if v.any()}
    return maps


@pytest.mark.parametrize(('name', 'polygons'), FORMS)
def test_every_mask_comes_back_exactly(case, tmp_path, name, polygons):
    ids = export(case, tmp_path / 'out', name, polygons=polygons)
    assert sorted(ids) == sorted(label_maps())
    found = back(tmp_path / 'out', tmp_path / 'back', name, case)
    maps = expected(name)
    assert found.keys() == maps.keys()
    for key, label in maps.items():
        assert np.array_equal(found[key], label), key
    labels = json.loads((tmp_path / 'back/image_labels.json').read_text())
    assert labels['classes'] == list(CLASSES)
    assert labels['labels']['noise'] == list(CLASSES)
    assert (tmp_path / 'back/list.txt').read_text().splitlines() == sorted(maps)


@pytest.mark.parametrize('name', FORMATS)
def test_ignored_pixels_left_out_become_background(case, tmp_path, name):
    export(case, tmp_path / 'out', name, ignore=False)
    found = back(tmp_path / 'out', tmp_path / 'back', name, case)
    maps = expected(name, ignore=False)
    for key, label in maps.items():
        assert np.array_equal(found[key], label), key
    texts = [p.read_text() for p in (tmp_path / 'out').rglob('*.[jxt][smx]*')]
    assert not any('"ignore"' in text or '>ignore<' in text for text in texts)


@pytest.mark.parametrize('name', [n for n in FORMATS if n != 'voc'])
def test_tolerance_means_fewer_corners_that_stay_near(tmp_path, name):
    y, x = np.mgrid[:90, :120]
    label = ((y - 40) ** 2 + (x - 60) ** 2 < 900).astype(np.uint8)
    label[(y - 40) ** 2 + (x - 60) ** 2 < 100] = 0
    (tmp_path / 'masks').mkdir()
    Image.fromarray(label).save(tmp_path / 'masks/a.png')
    sizes = []
    for tolerance in (0.0, 1.0):
        options = ExportOptions(
            format_name=name, classes=CLASSES, polygons=True, tolerance=tolerance
        )
        out = tmp_path / f'{tolerance}'
        list(export_masks(tmp_path / 'masks', out, options))
        sizes.append(sum(p.stat().st_size for p in out.rglob('*') if p.is_file()))
        found = back(out, tmp_path / f'back{tolerance}', name)['a']
        # What differs lies within the tolerance of an edge between two pixels.
        for dy, dx in np.argwhere(found != label):
            near = label[max(dy - 2, 0) : dy + 3, max(dx - 2, 0) : dx + 3]
            assert near.min() != near.max()
        assert (found != label).sum() <= 120 * tolerance
    assert sizes[1] < 0.8 * sizes[0]


def test_coco_is_what_its_own_tools_read(case, tmp_path):
    pytest.importorskip('pycocotools', reason='pip install pycocotools')
    from pycocotools import mask as tools
    from pycocotools.coco import COCO

    for polygons in (False, True):
        out = tmp_path / str(polygons)
        export(case, out, 'coco', polygons=polygons)
        theirs = COCO(out / 'instances.json')
        for image in theirs.imgs.values():
            label = label_maps()[image['file_name'].removesuffix('.jpg')]
            assert (image['height'], image['width']) == label.shape
            seen = np.zeros_like(label)
            for one in theirs.imgToAnns[image['id']]:
                mask = theirs.annToMask(one).astype(bool)
                assert one['area'] == tools.area(tools.encode(np.asfortranarray(mask)))
                left, top, width, height = one['bbox']
                place = np.zeros_like(mask)
                place[top : top + height, left : left + width] = True
                assert not (mask & ~place).any()
                seen[mask] = {1: 1, 2: 2, 3: 255}[one['category_id']]
            assert np.array_equal(seen, label), (image['file_name'], polygons)
    # Their runs, compressed and not, are read as well.
    mask = np.random.default_rng(1).random((37, 23)) > 0.4
    compressed = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    plain = np.flatnonzero(np.diff(mask.ravel('F'), append=~mask[-1:, -1])) + 1
    plain = np.diff(plain, prepend=0).tolist()
    for counts in (
        compressed['counts'].decode(),
        [0, *plain] if mask[0, 0] else plain,
    ):
        content = {
            'images': [{'id': 5, 'file_name': 'a.jpg', 'height': 37, 'width': 23}],
            'categories': [{'id': 9, 'name': 'cat'}],
            'annotations': [
                {
                    'id': 1,
                    'image_id': 5,
                    'category_id': 9,
                    'iscrowd': 1,
                    'segmentation': {'size': [37, 23], 'counts': counts},
                }
            ],
        }
        (tmp_path / 'theirs.json').write_text(json.dumps(content))
        found = back(tmp_path / 'theirs.json', tmp_path / f'{type(counts)}', 'coco')
        assert np.array_equal(found['a'] == 1, mask)


def test_regions_are_connected_and_scored():
    label = label_maps()['corners alone']
    regions = regions_of(label, CLASSES, reliability=np.full(label.shape, 0.25))
    # Pixels that touch at a corner alone are parts of their own, except for the
    # middle, where the two lines meet side by side.
    assert [r.area for r in regions] == [1, 1, 4, 1, 1]
    assert {r.score for r in regions} == {0.25}


def test_rings_keep_pixels_that_touch_at_a_corner_apart():
    for mask in ([[1, 0], [0, 1]], [[0, 1], [1, 0]]):
        rings = rings_of(np.array(mask))
        assert [len(ring) for ring in rings] == [4, 4]
        assert [ring_area(ring) for ring in rings] == [1, 1]
    hole = np.ones((5, 6), bool)
    hole[1:3, 1:4] = False
    assert sorted(map(ring_area, rings_of(hole))) == [-6, 30]


def test_small_regions_of_coco_lie_above_large_ones(tmp_path):
    content = coco_file()
    small, large = [[1, 1, 3, 1, 3, 3, 1, 3]], [[0, 0, 5, 0, 5, 4, 0, 4]]
    content['categories'].append({'id': 2, 'name': CLASSES[1]})
    content['annotations'] = [
        {'image_id': 1, 'category_id': 1, 'segmentation': small},
        {'image_id': 1, 'category_id': 2, 'segmentation': large},
    ]
    found = back(save(tmp_path / 'a.json', content), tmp_path / 'back', 'coco')['a']
    assert (found == 1).sum() == 4
    assert (found == 2).sum() == 16


def test_scores_and_tags_reach_the_annotator(case, tmp_path):
    options = ExportOptions(format_name='x-anylabeling', classes=CLASSES)
    list(
        export_masks(
            case / 'masks', tmp_path, options, reliability=case / 'Reliability'
        )
    )
    content = json.loads((tmp_path / 'holes in holes.json').read_text())
    assert content['tags'] == list(CLASSES)
    assert content['checked'] is False
    assert {shape['score'] for shape in content['shapes']} == {0.2}


def test_specks_are_left_out(case, tmp_path):
    export(case, tmp_path / 'out', 'labelme', min_area=3)
    found = back(tmp_path / 'out', tmp_path / 'back', 'labelme')
    assert not found['one pixel'].any()
    assert not found['sub/teile ä.b'].any()
    assert np.array_equal(found['all of it'], label_maps()['all of it'])
    assert (found['corners alone'] > 0).sum() == 4
    with pytest.raises(InputError, match='voc writes masks as they are'):
        export(case, tmp_path, 'voc', min_area=3)


# ----------------------------------------------------- files as the tools write them
def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict | list):
        content = json.dumps(content)
    path.write_text(content)
    return path


def square(top, left, bottom, right, size=(8, 10)):
    found = np.zeros(size, bool)
    found[top:bottom, left:right] = True
    return found


def test_cvat_as_it_exports(tmp_path):
    text = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>3</id></task></meta>
  <image id="7" name="sub/a b.jpg" subset="default" task_id="3" width="10" height="8">
    <tag label="cat" source="manual"></tag>
    <polygon label="cat" source="manual" occluded="0" z_order="1"
      points="1.00,1.00;4.00,1.00;4.00,5.00;1.00,5.00"></polygon>
    <box label="ignore" source="manual" occluded="0" xtl="0" ytl="0" xbr="6" ybr="6"
      z_order="0"></box>
    <mask label="cat" source="semi-auto" occluded="0" rle="1, 2, 3" left="6" top="6"
      width="3" height="2" z_order="0"></mask>
    <polyline label="cat" points="1.00,1.00;4.00,1.00"></polyline>
  </image>
  <image id="8" name="empty.jpg" width="4" height="4"></image>
</annotations>"""
    found = back(save(tmp_path / 'a.xml', text), tmp_path / 'xml', 'cvat')
    label = np.zeros((8, 10), np.uint8)
    label[square(0, 0, 6, 6)] = 255
    label[square(1, 1, 5, 4)] = 1
    label[6, 7:9] = 1
    assert np.array_equal(found['sub/a b'], label)
    assert not found['empty'].any()
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(tmp_path / 'a.xml', 'annotations.xml')
    zipped = back(tmp_path / 'a.zip', tmp_path / 'zip', 'cvat')
    assert np.array_equal(zipped['sub/a b'], label)


def test_label_studio_as_it_exports(tmp_path):
    common = {
        'original_width': 10,
        'original_height': 8,
        'image_rotation': 0,
        'from_name': 'label',
        'to_name': 'image',
    }
    polygon = {
        **common,
        'type': 'polygonlabels',
        'value': {
            'points': [[10, 12.5], [40, 12.5], [40, 62.5], [10, 62.5]],
            'closed': True,
            'polygonlabels': ['cat'],
        },
    }
    box = {
        **common,
        'type': 'rectanglelabels',
        'value': {
            'x': 50,
            'y': 50,
            'width': 50,
            'height': 50,
            'rotation': 0,
            'rectanglelabels': ['ignore'],
        },
    }
    # 320 bytes by rle-pack: 64 of 0, four of 255 one by one, and 252 of 0.
    bits = f'{320:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}'
    bits += f'110{63:08b}{0:08b}' + f'000{3:03b}' + 4 * f'{255:08b}'
    bits += f'110{251:08b}{0:08b}'
    bits += '0' * (-len(bits) % 8)
    brush = {
        **common,
        'type': 'brushlabels',
        'value': {
            'format': 'rle',
            'rle': [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)],
            'brushlabels': ['cat'],
        },
    }
    choice = {'type': 'choices', 'value': {'choices': ['x']}, 'from_name': 'c'}
    tasks = [
        {
            'id': 11,
            'data': {'image': '/data/upload/3/0a1b2c3d-a_b.jpg'},
            'annotations': [
                {'result': [box], 'was_cancelled': True},
                {'result': [brush], 'was_cancelled': False},
                {'result': [choice, polygon, box, brush], 'was_cancelled': False},
            ],
            'predictions': [{'result': [box]}],
        },
        {'id': 12, 'data': {'image': 'b.jpg'}, 'annotations': []},
    ]
    Image.new('RGB', (10, 8)).save(tmp_path / 'a_b.jpg')
    ids = import_annotations(
        save(tmp_path / 'out/a.json', tasks),
        tmp_path / 'back',
        format_name='label-studio',
        classes=CLASSES,
        photos=tmp_path,
    )
    assert list(ids) == ['a_b']
    label = np.zeros((8, 10), np.uint8)
    label[square(1, 1, 5, 4)] = 1
    label[square(4, 5, 8, 10)] = 255
    label[1, 6] = 1
    found = np.array(Image.open(tmp_path / 'back/SegmentationClass/a_b.png'))
    assert np.array_equal(found, label)


def test_label_studio_brush_is_what_the_reference_reads(case, tmp_path):
    """The decoder of the format's own description, bit by bit."""
    export(case, tmp_path, 'label-studio')
    tasks = json.loads((tmp_path / 'tasks.json').read_text())
    for task in tasks:
        label = label_maps()[task['data']['image'].removesuffix('.jpg')]
        seen = np.zeros_like(label)
        for result in task['predictions'][0]['result']:
            bits = ''.join(f'{byte:08b}' for byte in result['value']['rle'])
            total, place = int(bits[:32], 2), 53
            sizes = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
            values = []
            while len(values) < total:
                size = sizes[int(bits[place + 1 : place + 3], 2)]
                length = int(bits[place + 3 : place + 3 + size], 2) + 1
                assert bits[place] == '1'
                place += 3 + size
                values += length * [int(bits[place : place + 8], 2)]
                place += 8
            alpha = np.array(values).reshape(*label.shape, 4)[..., 3] > 0
            (name,) = result['value']['brushlabels']
            seen[alpha] = {CLASSES[0]: 1, CLASSES[1]: 2, 'ignore': 255}[name]
        assert np.array_equal(seen, label)


@pytest.mark.parametrize(
    ('kind', 'points', 'message'),
    [
        ('mask', [[math.nan, 1], [3, 3]], 'mask .* damaged'),
        ('mask', [[math.inf, 1], [3, 3]], 'mask .* damaged'),
        ('rectangle', [[1], [3, 3]], 'points that are none'),
        ('rectangle', None, 'points that are none'),
        ('circle', [[math.nan, 1], [3, 3]], 'points that are none'),
        ('circle', [[1, 1]], 'points that are none'),
        ('polygon', None, 'polygon'),
    ],
)
def test_shapes_of_labelme_that_are_none_are_one_sentence(
    tmp_path, kind, points, message
):
    png = io.BytesIO()
    Image.fromarray(np.eye(3, dtype=bool)).save(png, 'PNG')
    mask = base64.b64encode(png.getvalue()).decode()
    shape = {'label': 'cat', 'shape_type': kind, 'points': points, 'mask': mask}
    content = {
        'version': '5.5.0',
        'flags': {},
        'shapes': [shape],
        'imagePath': 'a.jpg',
        'imageData': None,
        'imageHeight': 8,
        'imageWidth': 10,
    }
    save(tmp_path / 'in/a.json', content)
    with pytest.raises(InputError, match=message):
        back(tmp_path / 'in', tmp_path / 'back', 'labelme')


@pytest.mark.parametrize('name', ['labelme', 'x-anylabeling'])
def test_labelme_as_it_writes(tmp_path, name):
    png = io.BytesIO()
    Image.fromarray(np.eye(3, dtype=bool)).save(png, 'PNG')
    shape = {'group_id': None, 'flags': {}}
    content = {
        'version': '5.5.0',
        'flags': {},
        'shapes': [
            {**shape, 'label': 'cat', 'shape_type': 'rectangle',
             'points': [[1.0, 1.0], [4.0, 5.0]]},
            {**shape, 'label': 'background', 'shape_type': 'polygon',
             'points': [[2, 2], [3, 2], [3, 3], [2, 3]]},
            {**shape, 'label': 'ignore', 'shape_type': 'mask',
             'points': [[5.0, 5.0], [7.0, 7.0]],
             'mask': base64.b64encode(png.getvalue()).decode()},
            {**shape, 'label': 'cat', 'shape_type': 'circle',
             'points': [[8.5, 1.5], [9.4, 1.5]]},
        ],
        'imagePath': '..\\photos\\a.jpg',
        'imageData': None,
        'imageHeight': 8,
        'imageWidth': 10,
    }  # fmt: skip
    save(tmp_path / 'in/a.json', content)
    save(tmp_path / 'in/other.json', {'nothing': 'here'})
    found = back(tmp_path / 'in', tmp_path / 'back', name)
    label = np.zeros((8, 10), np.uint8)
    label[square(1, 1, 5, 4)] = 1
    label[2, 2] = 0
    label[[5, 6, 7], [5, 6, 7]] = 255
    label[1, 8] = 1
    assert list(found) == ['a']
    assert np.array_equal(found['a'], label)


def test_colour_masks_of_cvat(tmp_path):
    save(
        tmp_path / 'in/labelmap.txt',
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n'
        'ignore:224,224,192::\n',
    )
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[1, 2], rgb[3, 4] = (128, 0, 0), (224, 224, 192)
    (tmp_path / 'in/SegmentationClass').mkdir()
    Image.fromarray(rgb).save(tmp_path / 'in/SegmentationClass/a.png')
    found = back(tmp_path / 'in', tmp_path / 'back', 'voc')['a']
    assert found[1, 2] == 1
    assert found[3, 4] == 255
    assert np.count_nonzero(found) == 2
    rgb[0, 0] = 7
    Image.fromarray(rgb).save(tmp_path / 'in/SegmentationClass/a.png')
    with pytest.raises(InputError, match=r'the colour \(7, 7, 7\)'):
        back(tmp_path / 'in', tmp_path / 'back2', 'voc')


def test_cvat_xml_names_every_label_and_photo(case, tmp_path):
    export(case, tmp_path, 'cvat')
    root = ElementTree.parse(tmp_path / 'annotations.xml').getroot()
    names = [label.findtext('name') for label in root.iter('label') if len(label)]
    assert names == [*CLASSES, 'ignore']
    files = {image.get('name') for image in root.iter('image')}
    assert files == {f'{name}.jpg' for name in label_maps()}


# ------------------------------------------------------------------------- bad input
def coco_file(**changes):
    content = {
        'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 4, 'width': 5}],
        'categories': [{'id': 1, 'name': 'cat'}],
        'annotations': [
            {'image_id': 1, 'category_id': 1, 'segmentation': [[0, 0, 2, 0, 2, 2]]}
        ],
    }
    return content | changes


def one(segmentation):
    return coco_file(
        annotations=[{'image_id': 1, 'category_id': 1, 'segmentation': segmentation}]
    )


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ([1], 'no COCO instances JSON'),
        (coco_file(images=[]), 'image 1'),
        (coco_file(categories=[{'id': 1, 'name': 'dog'}]), "the label 'dog'.*cat"),
        (coco_file(categories=[{'id': 2, 'name': 'cat'}]), 'the category 1'),
        (one([[0, 0, 1]]), 'a polygon of 0 points'),
        (one([[0, 0, 1, 1]]), 'a polygon of 2 points'),
        (one([[0, 0, float('nan'), 1, 2, 2]]), 'a polygon of 3 points'),
        (one(None), 'no segmentation'),
        (one({'size': [4, 5], 'counts': 'zz'}), 'is damaged'),
        (one({'size': [4, 5], 'counts': [3, 99]}), 'add up to 102'),
        (one({'size': [5, 4], 'counts': [20]}), r'has the size \(5, 4\)'),
        (coco_file(images=[{'id': 1, 'height': 'x', 'width': 1}]), "size 'x'"),
    ],
)
def test_damaged_files_say_so(tmp_path, content, sentence):
    path = save(tmp_path / 'a.json', content)
    with pytest.raises(InputError, match=sentence):
        back(path, tmp_path / 'back', 'coco')


def test_the_photo_must_be_there_and_have_the_size(tmp_path, case):
    path = save(tmp_path / 'a.json', coco_file())
    with pytest.raises(InputError, match=r"'a.jpg', which is not in"):
        back(path, tmp_path / 'back', 'coco', case)
    content = coco_file()
    content['images'][0]['file_name'] = 'one pixel.jpg'
    path = save(tmp_path / 'a.json', content)
    with pytest.raises(InputError, match=r'of a photo of 5 x 4, but .* has 4 x 5'):
        back(path, tmp_path / 'back', 'coco', case)
    # Names cannot lead out of the folder.
    content['images'][0]['file_name'] = '../../../x/../up.jpg'
    found = back(save(tmp_path / 'a.json', content), tmp_path / 'back', 'coco')
    assert list(found) == ['x/up']


def test_unusable_exports(case, tmp_path):
    with pytest.raises(InputError, match='no format of masks'):
        export(case, tmp_path, 'yolo')
    with pytest.raises(InputError, match='tolerance'):
        export(case, tmp_path, 'coco', tolerance=float('nan'))
    options = ExportOptions(format_name='coco', classes=('ignore',))
    with pytest.raises(InputError, match='stands for undecided'):
        list(export_masks(case / 'masks', tmp_path, options))
    options = ExportOptions(format_name='coco', classes=('cat',))
    with pytest.raises(InputError, match='holds the index 2'):
        list(export_masks(case / 'masks', tmp_path, options))


def test_the_verbs(case, tmp_path):
    classes = tmp_path / 'classes.txt'
    classes.write_text('background\n' + '\n'.join(CLASSES) + '\n')
    ids = tmp_path / 'ids.txt'
    ids.write_text('holes in holes\nnoise\n')
    common = ['--format', 'cvat', '--classes', classes, '--images', case / 'photos']

    def run(*arguments):
        return CliRunner().invoke(command, [str(a) for a in arguments])

    masks = ['masks', case / 'masks', *common, '--ids', ids, '--out', tmp_path / 'out']
    dry = run(*masks, '--dry-run')
    assert 'dry run: 2 to make' in dry.output
    assert not (tmp_path / 'out').exists()
    done = run(*masks, '--polygons')
    assert done.output.splitlines()[-1] == '2 ok, 0 skipped, 0 failed'
    refused = run(*masks)
    assert isinstance(refused.exception, InputError)
    again = run('annotations', tmp_path / 'out', *common, '--out', tmp_path / 'back')
    assert again.output.splitlines()[-1] == '2 ok, 0 skipped, 0 failed'
    found = np.array(Image.open(tmp_path / 'back/SegmentationClass/noise.png'))
    assert np.array_equal(found, label_maps()['noise'])
    assert 'tags' in run('--help').output


CVAT_IMAGE = '<annotations><image name="a.jpg" width="40" height="30">{}</image>' + (
    '</annotations>'
)


def of_cvat(folder, shape):
    source = save(folder / 'a.xml', CVAT_IMAGE.format(shape))
    return back(source, folder / 'masks', 'cvat')['a']


def inside(shape, angle):
    """Pixels whose middle, turned back, lies in a box or an ellipse; one by one."""
    found = np.zeros((30, 40), np.uint8)
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    for y, x in np.ndindex(30, 40):
        right, down = x + 0.5 - 18, y + 0.5 - 14
        # Clockwise on the screen: what was to the right comes down.
        across = right * cosine + down * sine
        along = down * cosine - right * sine
        if shape == 'box':
            found[y, x] = abs(across) < 12 and abs(along) < 5
        else:
            found[y, x] = (across / 12) ** 2 + (along / 5) ** 2 < 1
    return found


@pytest.mark.parametrize('angle', ['', '0.0', '90.00', '30', '359.3', '-45'])
@pytest.mark.parametrize('shape', ['box', 'ellipse'])
def test_boxes_and_ellipses_of_cvat_are_turned(tmp_path, shape, angle):
    place = 'xtl="6" ytl="9" xbr="30" ybr="19"'
    if shape == 'ellipse':
        place = 'cx="18.00" cy="14.00" rx="12.00" ry="5.00"'
    turned = f'rotation="{angle}"' if angle else ''
    found = of_cvat(tmp_path, f'<{shape} label="cat" {place} {turned} z_order="0"/>')
    wanted = inside(shape, float(angle or 0))
    assert wanted.sum() > 150
    # An edge may run through the middle of a pixel.
    assert (found != wanted).sum() <= 0.03 * wanted.sum()


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ('<box xtl="0" ytl="0" xbr="3" ybr="3" z_order="top"/>', "z_order 'top'"),
        ('<box xtl="0" ytl="0" xbr="3"/>', 'a box of image'),
        ('<box xtl="0" ytl="0" xbr="inf" ybr="3"/>', 'polygon of 4 points'),
        ('<box xtl="0" ytl="0" xbr="3" ybr="3" rotation="right"/>', 'a box of image'),
        ('<ellipse cx="3" cy="3" rx="nan" ry="1"/>', 'polygon of 256 points'),
        ('<polygon points="1,1;5,1"/>', 'polygon of 2 points'),
        ('<polygon points="1,1,1;5,1,1;5,5,1"/>', 'a polygon of image'),
        ('<polygon points="1;5;5;7;9;9"/>', 'a polygon of image'),
        ('<polygon/>', 'a polygon of image'),
        ('<mask rle="4" left="0" top="0" width="2" height="3"/>', 'add up to 4'),
        ('<mask rle="-1, 7" left="0" top="0" width="2" height="3"/>', 'add up to 6'),
        ('<mask rle="6" left="39" top="0" width="2" height="3"/>', 'beyond the photo'),
        ('<mask rle="6" left="0" top="-1" width="2" height="3"/>', 'beyond the photo'),
        ('<mask rle="6" left="inf" top="0" width="2" height="3"/>', 'a mask of image'),
        (f'<mask rle="{10**30}" left="0" top="0" width="2" height="3"/>', 'a mask of'),
        (
            f'<mask rle="{10**16}" left="0" top="0" width="{10**8}" height="{10**8}"/>',
            'beyond the photo',
        ),
        ('<heart x="1"/>', 'draw masks, polygons, boxes or ellipses'),
    ],
)
def test_shapes_of_cvat_that_are_none_are_one_sentence(tmp_path, shape, message):
    shape = shape.replace(' ', ' label="cat" ', 1)
    with pytest.raises(InputError, match=re.escape(message)):
        of_cvat(tmp_path, shape)
