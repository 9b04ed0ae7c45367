import json

import numpy as np
import pytest
from PIL import Image

from mmwsss.apis.prepare import (
    check_dataset,
    labels_from_csv,
    labels_from_folders,
    labels_from_voc,
    prepare_coco,
)
from mmwsss.datasets import ImageLabelDataset, save_image_labels
from mmwsss.errors import InputError


def photo(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(path)


def xml(root, name, *objects):
    (root / 'Annotations').mkdir(exist_ok=True)
    inside = ''.join(f'<object><name>{o}</name></object>' for o in objects)
    (root / 'Annotations' / f'{name}.xml').write_text(
        f'<annotation>{inside}</annotation>'
    )


def test_voc_labels_come_from_the_objects(tmp_path):
    xml(tmp_path, 'b', 'person', 'dog', 'dog')
    xml(tmp_path, 'a')
    classes, labels, _ = labels_from_voc(tmp_path)
    assert len(classes) == 20
    assert labels == {'a': [], 'b': ['dog', 'person']}
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
    classes, labels, _ = labels_from_folders(tmp_path)
    assert classes == ('cat', 'dog')
    assert labels['background/x'] == []
    save_image_labels(tmp_path / 'image_labels.json', classes, labels)
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
    classes, labels, _ = prepare_coco(tmp_path, masks=True)
    assert classes == ('person', 'toothbrush')
    assert labels == {'train': ['toothbrush'], 'val': ['person']}
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
