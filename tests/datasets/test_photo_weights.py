import json
import re

import pytest

from mmwsss.datasets.photo_weights import load_photo_weights, save_photo_weights
from mmwsss.errors import InputError


def test_written_weights_are_read(tmp_path):
    weights = {'a': 5.0, 'clip/003': 0.0, 'b': 1.0}
    save_photo_weights(tmp_path / 'new/w.json', weights)
    assert load_photo_weights(tmp_path / 'new/w.json') == weights


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ([], 'must hold {"weights"'),
        ({'a': 1}, 'must hold {"weights"'),
        ({'weights': {}}, 'must hold {"weights"'),
        ({'weights': {'a': '1'}}, "weight of 'a' .* must be a number of at least 0"),
        ({'weights': {'a': True}}, 'got True'),
        ({'weights': {'b': 1, 'a': -1}}, "'a' .* got -1"),
        ({'weights': {'a': float('inf')}}, 'got inf'),
        ({'weights': {'a': float('nan')}}, 'got nan'),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    path = tmp_path / 'w.json'
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        load_photo_weights(path)


def test_missing_and_broken_files_are_refused(tmp_path):
    path = tmp_path / 'w.json'
    with pytest.raises(InputError, match=re.escape(f'{path} do not exist; make')):
        load_photo_weights(path)
    path.write_text('{"weights": ')
    with pytest.raises(InputError, match='cannot be read as JSON'):
        load_photo_weights(path)
