import gzip
import json
from pathlib import Path

import pytest

from mmwsss.datasets import load_image_labels, save_image_labels
from mmwsss.errors import InputError

VOC12 = Path(__file__).resolve().parents[2].parent / 'shared' / 'data' / 'voc12'


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_labels_survive_a_round_trip_also_compressed(tmp_path):
    path = tmp_path / 'labels.json'
    save_image_labels(path, ['dog', 'sofa'], {'b': ['sofa', 'dog'], 'a': []})
    packed = tmp_path / 'labels.json.gz'
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        labels = load_image_labels(file)
        assert labels.classes == ('dog', 'sofa')
        assert labels.multi_hot('a').tolist() == [0, 0]
        assert labels.multi_hot('b').tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir() if p.suffix == '.tmp'] == []


@pytest.mark.parametrize(
    ('content', 'part'),
    [
        ('{', 'cannot be read as JSON'),
        ([], 'must hold'),
        ({'classes': ['a', 'a'], 'labels': {}}, 'different names'),
        ({'classes': [], 'labels': {}}, 'different names'),
        ({'classes': ['a', ' '], 'labels': {}}, 'different names'),
        ({'classes': ['background', 'a'], 'labels': {}}, 'names background'),
        ({'classes': [f'{i}' for i in range(255)], 'labels': {}}, 'more than 254'),
        ('{"classes": ["a"], "labels": {"x": ["a"], "x": []}}', "'x' is in it twice"),
        ({'classes': ['a'], 'labels': []}, 'must map'),
        ({'classes': ['a'], 'labels': {'x': 'a'}}, "image 'x'"),
        ({'classes': ['a'], 'labels': {'x': ['b']}}, "unknown class 'b'"),
        ({'classes': ['a'], 'labels': {'x': [3]}}, 'unknown class 3'),
    ],
)
def test_malformed_files_are_one_sentence(tmp_path, content, part):
    with pytest.raises(InputError, match=r'labels\.json') as error:
        load_image_labels(write(tmp_path / 'labels.json', content))
    assert part in str(error.value)
    assert '\n' not in str(error.value)


def test_missing_and_torn_files(tmp_path):
    with pytest.raises(InputError, match='mmwsss convert tags'):
        load_image_labels(tmp_path / 'absent.json')
    torn = tmp_path / 'torn.json.gz'
    torn.write_bytes(gzip.compress(b'{"classes": ["a"], "labels": {}}')[:-9])
    with pytest.raises(InputError, match='cannot be read'):
        load_image_labels(torn)
    damaged = bytearray(gzip.compress(json.dumps([*range(900)]).encode()))
    damaged[40:80] = bytes(range(40))
    torn.write_bytes(damaged)
    with pytest.raises(InputError, match='cannot be read'):
        load_image_labels(torn)


def test_saving_packs_when_the_name_says_so(tmp_path):
    path = tmp_path / 'labels.json.gz'
    save_image_labels(path, ['Straße'], {'x': ['Straße']})
    assert path.read_bytes()[:2] == b'\x1f\x8b'
    assert load_image_labels(path).classes == ('Straße',)


def test_marked_utf8_is_read(tmp_path):
    path = tmp_path / 'labels.json'
    path.write_bytes(b'\xef\xbb\xbf{"classes": ["a"], "labels": {}}')
    assert load_image_labels(path).classes == ('a',)


def test_failed_save_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'labels.json'
    save_image_labels(path, ['a'], {})

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', full)
    with pytest.raises(InputError, match='No space left'):
        save_image_labels(path, ['b'], {})
    assert load_image_labels(path).classes == ('a',)
    assert [p.name for p in tmp_path.iterdir()] == ['labels.json']


def test_published_voc_labels_load():
    if not VOC12.is_dir():
        pytest.skip('the VOC lists of ../shared/data are not here')
    labels = load_image_labels(VOC12 / 'image_labels.json.gz')
    assert len(labels.labels) == 12031
    assert labels.classes == tuple((VOC12 / 'classes.txt').read_text().split())
    listed = (VOC12 / 'train_aug.txt').read_text().split()
    assert len(listed) == 10582
    assert all(labels.multi_hot(i).sum() >= 1 for i in listed)
