import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmwsss.apis import photo_check
from mmwsss.apis.binary_data import CropOptions, convert_masks, make_crops
from mmwsss.apis.cli import run_tool
from mmwsss.apis.photo_check import check_photos
from mmwsss.apis.prepare import (
    VOC_CLASSES,
    check_dataset,
    labels_from_voc,
    prepare_coco,
    prepare_command,
)
from mmwsss.apis.tags import read_tags
from mmwsss.datasets import ImageLabelDataset, save_image_labels
from mmwsss.errors import InputError


def photo(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(path)


def labels_from_csv(table, photos):
    tags = read_tags(table, photos=photos, format_name='csv')
    return tags.classes, tags.labels, tags.skipped


def xml(root, name, *objects):
    (root / 'Annotations').mkdir(exist_ok=True)
    inside = ''.join(f'<object><name>{o}</name></object>' for o in objects)
    (root / 'Annotations' / f'{name}.xml').write_text(
        f'<annotation>{inside}</annotation>'
    )


def test_voc_labels_come_from_the_objects(tmp_path):
    xml(tmp_path, 'b', 'person', ' dog\n', 'dog')
    xml(tmp_path, 'a')
    tags = labels_from_voc(tmp_path)
    assert len(tags.classes) == 20
    assert tags.labels == {'a': [], 'b': ['dog', 'person']}
    xml(tmp_path, 'c', 'unicorn')
    with pytest.raises(InputError, match=r"c\.xml names the unknown class 'unicorn'"):
        labels_from_voc(tmp_path)
    with pytest.raises(InputError, match=r'prepare_data\.py check voc'):
        labels_from_voc(tmp_path / 'absent')


def test_csv_with_a_header_and_photos_without_a_line(tmp_path):
    for name in ('a.jpg', 'b.PNG', 'c.jpg'):
        photo(tmp_path / 'photos' / name)
    table = tmp_path / 'tags.csv'
    table.write_text('\ufefffile,tags\na.jpg,dog,sofa\nb,\n')
    classes, labels, skipped = labels_from_csv(table, tmp_path / 'photos')
    assert classes == ('dog', 'sofa')
    assert labels == {'a': ['dog', 'sofa'], 'b': []}
    assert skipped == 1
    table.write_text('a.jpg,dog\nz.jpg,dog\n')
    with pytest.raises(InputError, match=r"line 2 .* 'z\.jpg'"):
        labels_from_csv(table, tmp_path / 'photos')


def test_folders_make_labels_that_the_data_set_reads(tmp_path):
    photo(tmp_path / 'cat' / '1.jpg')
    photo(tmp_path / 'dog' / '1.jpg')
    photo(tmp_path / 'background' / 'x.jpg')
    tags = read_tags(tmp_path, format_name='folders')
    assert tags.classes == ('cat', 'dog')
    assert tags.labels['background/x'] == []
    save_image_labels(tmp_path / 'image_labels.json', tags.classes, tags.labels)
    dataset = ImageLabelDataset(
        data_root=str(tmp_path), image_labels='image_labels.json'
    )
    found = {
        dataset.get_data_info(i)['img_id']: dataset.get_data_info(i)[
            'image_label'
        ].sum()
        for i in range(len(dataset))
    }
    assert found == {'background/x': 0, 'cat/1': 1, 'dog/1': 1}


def coco(root, split, **annotation):
    content = {
        'images': [{'id': 7, 'file_name': f'{split}.jpg', 'width': 8, 'height': 6}],
        'categories': [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}],
        'annotations': [{'image_id': 7, 'area': 9, **annotation}],
    }
    (root / 'annotations').mkdir(exist_ok=True)
    (root / 'annotations' / f'instances_{split}2014.json').write_text(
        json.dumps(content)
    )
    photo(root / f'{split}2014' / f'{split}.jpg')


def test_coco_becomes_lists_links_labels_and_masks(tmp_path):
    square = [2, 1, 5, 1, 5, 4, 2, 4]
    coco(tmp_path, 'train', category_id=90, segmentation=[square])
    crowd = {'size': [6, 8], 'counts': [6, 12, 30]}
    coco(tmp_path, 'val', category_id=1, segmentation=crowd, iscrowd=1)
    tags = prepare_coco(tmp_path, masks=True)
    assert tags.classes == ('person', 'toothbrush')
    assert tags.labels == {'train': ['toothbrush'], 'val': ['person']}
    assert (tmp_path / 'JPEGImages' / 'val.jpg').is_file()
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    assert (lists / 'train.txt').read_text() == 'train\n'
    masks = tmp_path / 'SegmentationClass'
    mask = np.asarray(Image.open(masks / 'train.png'))
    assert mask[2, 3] == 2
    assert mask[0, 0] == 0
    expected = np.zeros((6, 8))
    expected[:, 1:3] = 255
    np.testing.assert_array_equal(np.asarray(Image.open(masks / 'val.png')), expected)


def test_check_says_what_is_missing_and_how_to_get_it(tmp_path):
    findings = check_dataset('voc', tmp_path)
    assert len(findings) == 7
    assert 'VOCtrainval_11-May-2012.tar' in findings[0]
    save_image_labels(tmp_path / 'image_labels.json', ['dog', 'cat'], {'a': ['dog']})
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('a\nb\n')
    findings = check_dataset('folder', tmp_path)
    assert findings[0].startswith("the class 'cat'")
    assert "the first is 'b'" in findings[1]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('aa.jpg,dog\na.jpg,cat\n', r"line 1 .* 'aa\.jpg'"),
        ('a.jpg;dog\n', r"';' instead of commas"),
        ('a.jpg,dog\nother/a.jpg,cat\n', r"line 2 .* 'other/a\.jpg'"),
        ('a.jpg,\n', 'no photo of .* has a class'),
    ],
)
def test_wrong_lines_of_a_csv_are_named(tmp_path, text, message):
    photo(tmp_path / 'photos' / 'a.jpg')
    (tmp_path / 'tags.csv').write_text(text)
    with pytest.raises(InputError, match=message):
        labels_from_csv(tmp_path / 'tags.csv', tmp_path / 'photos')


def test_csv_names_photos_from_several_places(tmp_path):
    photos = tmp_path / 'photos'
    for name in ('a.jpg', 'in/b.jpg', 'c.v2.jpg', 'd.jpg'):
        photo(photos / name)
    rows = ('photos/a.jpg,dog,dog', 'in/b.jpg,cat', 'c.v2,dog', 'a.jpg,dog,cat')
    lines = [*rows, f'{photos / "d.jpg"},background']
    (tmp_path / 'tags.csv').write_text('\n'.join(lines))
    classes, labels, skipped = labels_from_csv(tmp_path / 'tags.csv', photos)
    assert classes == ('cat', 'dog')
    expected = {'a': ['dog', 'cat'], 'in/b': ['cat'], 'c.v2': ['dog'], 'd': []}
    assert labels == expected
    assert skipped == 0


@pytest.mark.parametrize('name', ['stray.jpg', 'train/cat/1.jpg'])
def test_photos_outside_class_folders_are_refused(tmp_path, name):
    photo(tmp_path / 'cat' / '1.jpg')
    photo(tmp_path / name)
    with pytest.raises(InputError, match=f'{name} does not lie directly'):
        read_tags(tmp_path, format_name='folders')


def test_missing_coco_annotations_say_where_to_get_them(tmp_path):
    with pytest.raises(InputError, match=r'annotations_trainval2014\.zip'):
        prepare_coco(tmp_path, masks=False)


def test_check_names_listed_photos_and_masks_that_are_missing(tmp_path):
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    for name in ('train_aug', 'val'):
        (lists / f'{name}.txt').write_text('a\nb\n')
    photo(tmp_path / 'JPEGImages' / 'a.jpg')
    photo(tmp_path / 'SegmentationClass' / 'b.png')
    save_image_labels(
        tmp_path / 'image_labels.json', ['dog'], {'a': ['dog'], 'b': ['dog']}
    )
    findings = check_dataset('folder', tmp_path)
    assert len(findings) == 3
    assert 'train_aug.txt do not have a photo' in findings[0]
    assert 'val.txt do not have a photo' in findings[1]
    assert 'val.txt do not have a mask' in findings[2]
    assert 'does not exist' in check_dataset('folder', tmp_path / 'absent')[0]


def run(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['prepare_data.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_tool(prepare_command)
    return stopped.value.code


def test_tool_counts_and_does_not_overwrite(tmp_path, monkeypatch, capsys):
    photo(tmp_path / 'cat' / '1.jpg')
    assert run(monkeypatch, 'folders', tmp_path) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == '1 photos with labels, 0 left out'
    written = (tmp_path / 'image_labels.json').read_bytes()
    photo(tmp_path / 'dog' / '1.jpg')
    assert run(monkeypatch, 'folders', tmp_path) == 1
    assert capsys.readouterr().err.endswith('add --overwrite to replace it\n')
    assert (tmp_path / 'image_labels.json').read_bytes() == written
    assert run(monkeypatch, 'folders', tmp_path, '--overwrite') == 0
    assert (tmp_path / 'image_labels.json').read_bytes() != written
    assert run(monkeypatch, 'check', 'folder', tmp_path) == 0
    assert run(monkeypatch, 'check', 'voc', tmp_path) == 1


def test_voc_classes_are_the_published_ones():
    file = Path(__file__).resolve().parents[2].parent / 'shared/data/voc12/classes.txt'
    if not file.is_file():
        pytest.skip('the VOC lists of ../shared/data are not here')
    assert tuple(file.read_text().split()) == VOC_CLASSES


def forty_photos(folder):
    """Forty good photos in two folders; their names in the order of the tool."""
    names = [f'{part}/{number:02}.jpg' for part in 'ab' for number in range(20)]
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / name)
    return names


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize('workers', [1, 2, 64])
def test_check_opens_every_photo_with_any_number_of_workers(tmp_path, workers):
    names = forty_photos(tmp_path)
    assert check_photos(tmp_path, workers=workers) == (40, [])
    for index in (39, 3, 17, 21):
        truncate(tmp_path / names[index])
    (tmp_path / 'a/05.jpg').write_bytes(b'')
    count, (sentence,) = check_photos(tmp_path, workers=workers)
    assert count == 40
    assert sentence.startswith(f'5 of 40 photos in {tmp_path} cannot be read: ')
    assert 'read: a/03.jpg, a/05.jpg, a/17.jpg and 2 more; replace them' in sentence
    assert 'truncated or damaged' in sentence
    assert '\n' not in sentence


def test_check_lists_what_cannot_be_read(tmp_path, monkeypatch, capsys):
    names = forty_photos(tmp_path / 'some')
    for index in (21, 3):
        truncate(tmp_path / 'some' / names[index])
    given = ('check', 'photos', tmp_path / 'some', '--list', tmp_path / 'broken.txt')
    assert run(monkeypatch, *given) == 1
    assert (tmp_path / 'broken.txt').read_text() == 'a/03\nb/01\n'
    assert capsys.readouterr().out.endswith('1 findings\n')
    for name in ('a/03.jpg', 'b/01.jpg'):
        (tmp_path / 'some' / name).unlink()
    assert run(monkeypatch, *given) == 0
    assert (tmp_path / 'broken.txt').read_text() == ''
    assert run(monkeypatch, *given, '--fast') == 1
    assert '--list needs photos to be opened' in capsys.readouterr().err


def test_check_survives_whatever_a_decoder_raises(tmp_path, monkeypatch):
    def read(path):
        if path.endswith('b.jpg'):
            raise KeyError
        raise RuntimeError('odd')

    photo(tmp_path / 'a.jpg')
    photo(tmp_path / 'b.jpg')
    monkeypatch.setattr(photo_check, 'read_photo', read)
    _, (sentence,) = check_photos(tmp_path, workers=1)
    assert sentence.startswith('2 of 2 photos')
    assert sentence.endswith('(the first: odd)')


def test_check_of_a_folder_without_photos_and_wrong_workers(tmp_path):
    assert check_photos(tmp_path, workers=2) == (0, [])
    with pytest.raises(InputError, match='--workers must be 1 or more, got 0'):
        check_photos(tmp_path, workers=0)
    photo(tmp_path / 'a.jpg')
    photo(tmp_path / 'a.png')
    _, (sentence,) = check_photos(tmp_path, workers=1)
    assert 'same image id' in sentence


def killed(path):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs forked processes')
def test_killed_process_is_one_sentence(tmp_path, monkeypatch):
    forty_photos(tmp_path)
    monkeypatch.setattr(photo_check, 'read_photo', killed)
    with pytest.raises(InputError, match='fewer --workers than 2'):
        check_photos(tmp_path, workers=2)


def test_check_opens_photos_unless_it_shall_be_fast(tmp_path, monkeypatch, capsys):
    names = forty_photos(tmp_path / 'JPEGImages')
    classes = {name[:-4]: ['dog'] for name in names}
    save_image_labels(tmp_path / 'image_labels.json', ['dog'], classes)
    (tmp_path / 'elsewhere.jpg').write_bytes(b'not among the photos')
    arguments = ('check', 'folder', tmp_path, '--workers', 2)
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == 'opened 40 photos\n0 findings\n'
    truncate(tmp_path / 'JPEGImages' / names[7])
    before = sorted(tmp_path.rglob('*'))
    assert run(monkeypatch, *arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'opened 40 photos'
    assert lines[1].startswith('1 of 40 photos in')
    assert 'a/07.jpg' in lines[1]
    assert lines[2:] == ['1 findings']
    assert run(monkeypatch, *arguments, '--fast') == 0
    assert capsys.readouterr().out == '0 findings\n'
    assert sorted(tmp_path.rglob('*')) == before
    assert run(monkeypatch, 'check', 'folder', tmp_path / 'absent') == 1


def test_check_shows_progress_where_somebody_looks(tmp_path, monkeypatch, capsys):
    forty_photos(tmp_path)
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    check_photos(tmp_path, workers=1)
    assert '40/40' in capsys.readouterr().err


def test_csv_of_a_part_of_the_folder_says_how_to_train_on_it(
    tmp_path, monkeypatch, capsys
):
    for name in 'abcdef':
        photo(tmp_path / 'photos' / f'{name}.jpg')
    (tmp_path / 'tags.csv').write_text('b.jpg,dog\nd.jpg\n')
    images = ('--images', tmp_path / 'photos')
    assert run(monkeypatch, 'csv', tmp_path / 'tags.csv', *images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith('note: 1 of 2 photos have no tag')
    assert lines[2].startswith('note: 4 photos have no entry')
    assert '(a, c, e, ...)' in lines[2]
    assert lines[-1] == '2 photos with labels, 4 left out'
    folder = dict(data_root=str(tmp_path / 'photos'), image_labels='image_labels.json')
    with pytest.raises(InputError, match=r"4 of 6 images \('a', 'c', 'e', \.\.\.\)"):
        ImageLabelDataset(**folder)
    # What both sentences advise works.
    assert 'skip_unlabelled=True' in lines[2]
    dataset = ImageLabelDataset(**folder, skip_unlabelled=True)
    assert [dataset.get_data_info(i)['img_id'] for i in range(2)] == ['b', 'd']
    (tmp_path / 'tags.csv').write_text('\n'.join(f'{n}.jpg,dog' for n in 'abcdef'))
    out = ('--out', tmp_path / 'all.json')
    assert run(monkeypatch, 'csv', tmp_path / 'tags.csv', *images, *out) == 0
    assert 'note: ' not in capsys.readouterr().out


def binary_photos(root, *, count=3, value=255):
    for folder in ('img', 'gt'):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        # Grey, since JPEG blurs colours.
        image = generator.integers(0, 255, (60, 80), np.uint8)
        mask = np.zeros((60, 80), np.uint8)
        mask[20:35, 40:60] = value
        Image.fromarray(image).convert('RGB').save(root / 'img' / f'{number}.png')
        Image.fromarray(mask).save(root / 'gt' / f'{number}.png')
    (root / 'val.txt').write_text('0\n2\n')
    return root / 'img', root / 'gt'


def crop_options(**changes):
    return CropOptions(
        **{'size': 20, 'foreground': (255,), 'class_name': 'smoke', **changes}
    )


def test_crops_are_a_data_set_with_photos_without_the_object(tmp_path):
    photos, masks = binary_photos(tmp_path)
    out, options = tmp_path / 'out', crop_options(negatives=2, min_area=0.2)
    assert make_crops(photos, masks, out, options, lists=[tmp_path / 'val.txt'])
    dataset = ImageLabelDataset(
        data_root=str(out),
        image_labels='image_labels.json',
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        pipeline=[
            dict(type='mmwsss.LoadPhoto'),
            dict(type='mmwsss.LoadMask', num_classes=2),
            dict(type='mmwsss.PackWSSSInputs'),
        ],
    )
    sources = json.loads((out / 'crops.json').read_text())
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [
        f'{photo}_{kind}' for photo in (0, 2) for kind in ('p0', 'n0', 'n1')
    ]
    for i in range(len(dataset)):
        name = dataset.get_data_info(i)['img_id']
        sample = dataset[i]['data_samples']
        mask = sample.gt_sem_seg.data[0].numpy()
        row, column = sources[name]['top_left']
        with Image.open(masks / f'{sources[name]["photo"]}.png') as whole:
            part = np.asarray(whole)[row : row + 20, column : column + 20]
        assert np.array_equal(mask, part // 255)
        assert sample.image_label.tolist() == [float('p' in name)]
        assert mask.mean() >= 0.2 if 'p' in name else not mask.any()
    # The same again is there already, other settings are refused.
    lists = [tmp_path / 'val.txt']
    assert not make_crops(photos, masks, out, options, lists=lists)
    with pytest.raises(InputError, match='is not a folder of crops'):
        make_crops(photos, masks, out, crop_options(seed=1), lists=lists)


def test_an_overlay_stays_out_of_crops(tmp_path):
    photos, masks = binary_photos(tmp_path)
    options = crop_options(negatives=20, remove_overlay=(0.3, 0.25))
    make_crops(photos, masks, tmp_path / 'out', options)
    sources = json.loads((tmp_path / 'out' / 'crops.json').read_text())
    assert len(sources) > 10
    for name, source in sources.items():
        row, column = source['top_left']
        assert row >= 18
        assert column >= 20
        with (
            Image.open(photos / f'{source["photo"]}.png') as whole,
            Image.open(tmp_path / 'out' / 'JPEGImages' / f'{name}.jpg') as crop,
        ):
            part = np.asarray(whole, float)[row : row + 20, column : column + 20]
            # Noise through a JPEG; another place would be 85 grey levels off.
            assert np.abs(part - np.asarray(crop)).mean() < 20


def test_masks_of_other_values_are_named(tmp_path):
    photos, masks = binary_photos(tmp_path)
    out = tmp_path / 'out'
    with pytest.raises(InputError, match='saved as 255 need --foreground 255'):
        make_crops(photos, masks, out, crop_options(foreground=(1,)))
    assert not out.exists()
    binary_photos(tmp_path / 'low', value=155)
    with pytest.raises(InputError, match=r'holds the value 155.* --foreground 155'):
        make_crops(tmp_path / 'low/img', tmp_path / 'low/gt', out, crop_options())
    with pytest.raises(InputError, match=r'--min-area is a share in \[0, 1\], got 2'):
        crop_options(min_area=2)


def test_binary_masks_become_ours(tmp_path):
    _, masks = binary_photos(tmp_path)
    assert convert_masks(masks, tmp_path / 'new', foreground=(255,)) == 3
    with Image.open(tmp_path / 'new' / '1.png') as mask:
        assert mask.mode == 'P'
        values, counts = np.unique(np.asarray(mask), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: 4500, 1: 300}
    with pytest.raises(InputError, match='is the folder of the masks'):
        convert_masks(masks, masks, foreground=(255,))


def test_the_command_cuts_crops(tmp_path, capsys, monkeypatch):
    photos, masks = binary_photos(tmp_path)
    words = ['crops', photos, masks, tmp_path / 'out', '--size', 16]
    words += ['--foreground', 255, '--class-name', 'smoke']
    monkeypatch.setattr('sys.argv', ['prepare_data.py', *map(str, words)])
    assert prepare_command() == 0
    assert '3 crops with smoke\n3 crops without smoke' in capsys.readouterr().out
    assert prepare_command() == 0
    assert 'already there' in capsys.readouterr().out
