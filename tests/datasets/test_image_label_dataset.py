import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch

from mmwsss.datasets import ImageLabelDataset, SeededIndex, image_label_dataset
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.errors import InputError, UnreadablePhoto

SHARED = Path(__file__).resolve().parents[2].parent / 'shared' / 'data'
PIPELINE = [dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.PackWSSSInputs')]


@pytest.fixture
def root(tmp_path):
    return tiny_run.draw(tmp_path)


def build(root, **options):
    options = {
        'image_labels': 'image_labels.json',
        'ann_file': 'train.txt',
        'data_prefix': dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        'pipeline': PIPELINE,
        **options,
    }
    return ImageLabelDataset(data_root=str(root), **options)


def test_samples_carry_their_image_label(root):
    dataset = build(root)
    assert dataset.metainfo['classes'] == ('background', 'disc', 'bar')
    assert dataset.metainfo['palette'][:3] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    labels = [dataset[i]['data_samples'].image_label.tolist() for i in range(4)]
    assert labels == [[0, 0], [1, 0], [0, 1], [1, 1]]
    sample = dataset[3]['data_samples']
    assert sample.metainfo['img_id'] == 'photo_3'
    assert 'gt_sem_seg' not in sample


def test_folder_without_a_list_takes_every_photo(root):
    (root / 'JPEGImages' / 'photo_0.jpg').rename(root / 'JPEGImages' / 'photo_0.JPG')
    (root / 'JPEGImages' / 'notes.txt').write_text('not a photo')
    dataset = build(root, ann_file='')
    assert len(dataset) == 8
    assert dataset.get_data_info(0)['img_id'] == 'photo_0'


def test_augmentation_depends_on_the_seed_of_the_index_alone(root):
    pipeline = [
        PIPELINE[0],
        dict(type='mmwsss.RandomCropWithBox', crop_size=(20, 20)),
        dict(type='RandomFlip', prob=0.5),
        PIPELINE[1],
    ]
    dataset = build(root, pipeline=pipeline)
    first = dataset[SeededIndex(1, 5)]
    np.random.rand(17)
    again = dataset[SeededIndex(1, 5)]
    assert torch.equal(first['inputs'], again['inputs'])
    boxes = {
        dataset[SeededIndex(1, s)]['data_samples'].metainfo['crop_box']
        for s in range(8)
    }
    assert len(boxes) > 2


def test_every_generator_a_transform_may_use_is_seeded(root):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    dataset = build(root)
    dataset[SeededIndex(1, 5)]
    first = draw()
    dataset[SeededIndex(2, 5)]
    assert draw() == first
    dataset[SeededIndex(1, 6)]
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.parametrize(
    ('change', 'parts'),
    [
        (lambda r: (r / 'train.txt').unlink(), ['train.txt', 'ann_file']),
        (lambda r: (r / 'JPEGImages').rename(r / 'moved'), ['JPEGImages', 'img_path']),
        (lambda r: (r / 'JPEGImages/photo_2.jpg').unlink(), ['1 of 8', 'photo_2.jpg']),
        (lambda r: (r / 'train.txt').write_text('\n'), ['no photo']),
    ],
)
def test_what_is_missing_is_named(root, change, parts):
    change(root)
    with pytest.raises(InputError) as error:
        build(root)
    for part in parts:
        assert part in str(error.value)


def test_photo_without_an_entry_is_named(root):
    file = root / 'image_labels.json'
    content = json.loads(file.read_text())
    del content['labels']['photo_6']
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="'photo_6' has no entry"):
        build(root)


def drop_entries(root, *ids):
    file = root / 'image_labels.json'
    content = json.loads(file.read_text())
    for image_id in ids:
        del content['labels'][image_id]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize('ann_file', ['', 'train.txt'])
def test_photos_without_an_entry_are_counted_or_left_out(root, ann_file, monkeypatch):
    drop_entries(root, 'photo_1', 'photo_2', 'photo_5', 'photo_7')
    with pytest.raises(InputError) as error:
        build(root, ann_file=ann_file)
    sentence = str(error.value)
    assert "4 of 8 images ('photo_1', 'photo_2', 'photo_5', ...) have" in sentence
    assert 'image_labels.json' in sentence
    assert 'skip_unlabelled=True' in sentence
    said = []
    monkeypatch.setattr(
        image_label_dataset, 'print_log', lambda text, *rest: said.append(text)
    )
    dataset = build(root, ann_file=ann_file, skip_unlabelled=True)
    ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    # A photo without objects has an entry and stays.
    assert ids == ['photo_0', 'photo_3', 'photo_4', 'photo_6']
    (sentence,) = said
    assert sentence.startswith('left out: 4 of 8 images')
    build(tiny_run.draw(root), ann_file=ann_file, skip_unlabelled=True)
    assert len(said) == 1


@pytest.mark.parametrize('ann_file', ['', 'train.txt'])
def test_excluded_photos_are_counted_and_need_not_be_there(root, ann_file, monkeypatch):
    said = []
    monkeypatch.setattr(
        image_label_dataset, 'print_log', lambda text, *rest: said.append(text)
    )
    (root / 'JPEGImages/photo_2.jpg').unlink()
    (root / 'broken.txt').write_text('photo_2\nphoto_5\nnowhere\n')
    more = root / 'held out.txt'
    more.write_text('photo_7\nphoto_5\n')
    dataset = build(root, ann_file=ann_file, exclude=['broken.txt', str(more)])
    ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    assert ids == [f'photo_{i}' for i in (0, 1, 3, 4, 6)]
    total = 8 if ann_file else 7
    assert said == [
        f'left out: {total - 6} of {total} photos, which {root}/broken.txt names',
        f'left out: 1 of 6 photos, which {more} names',
    ]
    dataset = build(root, ann_file=ann_file, exclude='broken.txt')
    assert len(dataset) == 6
    with pytest.raises(InputError, match=r'none.txt cannot be read; .*correct exclude'):
        build(root, ann_file=ann_file, exclude='none.txt')


def test_a_photo_that_cannot_be_read_says_how_to_leave_all_of_them_out(root):
    photo = root / 'JPEGImages/photo_3.jpg'
    photo.write_bytes(photo.read_bytes()[:-300])
    dataset = build(root)
    assert dataset[2]['data_samples'].metainfo['img_id'] == 'photo_2'
    with pytest.raises(UnreadablePhoto) as error:
        dataset[3]
    assert f'the photo {photo} is truncated or damaged' in str(error.value)
    command = f'check photos {root}/JPEGImages --list broken.txt'
    assert command in str(error.value)
    assert '--exclude broken.txt' in str(error.value)


def test_labels_of_another_folder_are_refused_whatever_is_skipped(root):
    drop_entries(root, *(f'photo_{i}' for i in range(8)))
    for skip in (False, True):
        with pytest.raises(InputError, match=r'8 of 8 .* correct image_labels'):
            build(root, skip_unlabelled=skip)


@pytest.mark.parametrize(
    ('name', 'split', 'count', 'classes'),
    [('msrc', 'train', 295, 16), ('msrc', 'val', 148, 16), ('smoke', 'train', 260, 1)],
)
def test_real_sets_load(name, split, count, classes):
    root = SHARED / name
    if not root.is_dir():
        pytest.skip('the real photos of ../shared/data are not here')
    dataset = build(root, ann_file=f'ImageSets/Segmentation/{split}.txt')
    assert len(dataset) == count
    assert len(dataset.metainfo['classes']) == classes + 1
    assert dataset[0]['inputs'].shape[0] == 3


def test_missing_root_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r'absent does not exist.* check voc '):
        build(tmp_path / 'absent')


def test_lists_may_name_subfolders_spaces_and_more_columns(root):
    photos = root / 'JPEGImages'
    (photos / 'in').mkdir()
    (photos / 'photo_1.jpg').rename(photos / 'in' / '1.jpg')
    (photos / 'photo_2.jpg').rename(photos / 'my photo.jpg')
    file = root / 'image_labels.json'
    content = json.loads(file.read_text())
    content['labels'] |= {'in/1': ['disc'], 'my photo': ['bar']}
    file.write_text(json.dumps(content))
    lines = '\ufeffin/1\nmy photo\nphoto_3 -1\n'
    (root / 'train.txt').write_text(lines, encoding='utf-8')
    dataset = build(root)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [i['img_id'] for i in infos] == ['in/1', 'my photo', 'photo_3']
    assert dataset[0]['inputs'].ndim == 3
    (root / 'train.txt').write_text('absent/1\n')
    with pytest.raises(InputError, match=r'absent/1\.jpg'):
        build(root)


def test_list_of_another_encoding_is_named(root):
    (root / 'train.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match=r'train\.txt cannot be read'):
        build(root)


def test_linked_folders_count_and_hidden_files_do_not(root, tmp_path_factory):
    photos = root / 'JPEGImages'
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (photos / 'photo_1.jpg').rename(elsewhere / '1.jpg')
    (photos / 'linked').symlink_to(elsewhere)
    (photos / '._photo_2.jpg').write_bytes(b'no photo')
    (photos / '.cache').mkdir()
    (photos / '.cache' / 'small.jpg').write_bytes(b'no photo')
    ids = [image_id for image_id, _ in find_photos(photos)]
    assert ids == ['linked/1', 'photo_0', *(f'photo_{i}' for i in range(2, 8))]


def test_two_photos_of_one_id_are_refused(root):
    (root / 'JPEGImages' / 'photo_1.png').write_bytes(b'')
    with pytest.raises(InputError, match='same image id'):
        build(root, ann_file='')


def test_voc_photos_and_masks_agree():
    root = SHARED / 'voc12_sample' / 'VOCdevkit' / 'VOC2012'
    if not root.is_dir():
        pytest.skip('the VOC photos of ../shared/data are not here')
    mask = dict(type='mmwsss.LoadMask', num_classes=21)
    dataset = build(
        root,
        image_labels='../../image_labels.json',
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=[PIPELINE[0], mask, PIPELINE[1]],
    )
    assert len(dataset) == 2
    for sample in (dataset[i]['data_samples'] for i in range(2)):
        values = sample.gt_sem_seg.data.unique().tolist()
        present = (sample.image_label.nonzero().flatten() + 1).tolist()
        assert [v for v in values if v not in (0, 255)] == present
