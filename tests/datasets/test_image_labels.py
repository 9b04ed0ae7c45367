import gzip
import json

import pytest

from mmwsss.datasets import load_image_labels, save_image_labels
from mmwsss.errors import InputError


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
    with pytest.raises(InputError, match=r'prepare_data\.py'):
        load_image_labels(tmp_path / 'absent.json')
    torn = tmp_path / 'torn.json.gz'
    torn.write_bytes(gzip.compress(b'{"classes": ["a"], "labels": {}}')[:-9])
    with pytest.raises(InputError, match='cannot be read'):
        load_image_labels(torn)
