"""Embeddings of photos and prompts, what they tell, and the filter that reads them."""

import logging

import fake_cams
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmwsss.apis.check_prompts import (
    PromptOptions,
    check_prompt_separability,
    check_prompts,
    check_prompts_command,
    embed_photos,
)
from mmwsss.apis.label_rules import parse_refiner
from mmwsss.apis.photos import list_photos
from mmwsss.apis.refiner_inputs import photo_input_hashes, read_photo_inputs
from mmwsss.datasets import EmbeddingStore, Prompts
from mmwsss.errors import InputError
from mmwsss.models.encoders import FrozenCLIP
from mmwsss.models.refiners import CLIPFilter

pytestmark = pytest.mark.mm

TOWERS = fake_cams.ROOT / 'mmwsss/datasets/tiny_towers'
CLIP = dict(model=str(TOWERS / 'clip.json'), weights=str(TOWERS / 'clip.safetensors'))


@pytest.fixture
def found(tmp_path):
    config, _ = fake_cams.write(tmp_path)
    config = Config.fromfile(str(config))
    init_default_scope('mmseg')
    return list_photos(config, split='train')


def options(tmp_path, **changes):
    words = dict(class_words=('disc', 'bar'), background_words=('sky', 'ground'))
    return PromptOptions(**CLIP | words | dict(out=tmp_path / 'out') | changes)


def test_photos_are_embedded_once_and_words_are_free(found, tmp_path):
    assert embed_photos(found, options(tmp_path), show=False) == 8
    store = EmbeddingStore(tmp_path / 'out')
    image, cells = store.read('photo_3')
    clip = FrozenCLIP(**CLIP, class_names=['disc'], num_attentions=0)
    photo = found.photos[3].pixels()[None] / 255
    expected = clip.image_features(photo)[0].numpy()
    np.testing.assert_allclose(image, expected, atol=1e-3)
    np.testing.assert_allclose(cells, clip.cell_features(photo)[0].numpy(), atol=1e-3)
    assert store.read_prompts().texts.shape[0] == 4
    before = store.path('photo_3').read_bytes()
    more = options(tmp_path, background_words=('sky', 'ground', 'cloud'))
    assert embed_photos(found, more, show=False) == 0
    assert store.read_prompts().texts.shape[0] == 5
    assert store.path('photo_3').read_bytes() == before
    with pytest.raises(InputError, match='another weights'):
        embed_photos(found, options(tmp_path, weights=None), show=False)
    with pytest.raises(InputError, match='needs 2 words, one per class'):
        embed_photos(found, options(tmp_path, class_words=('disc',)), show=False)


def store_colours(folder, found):
    """Embeddings that say whether a photo shows a disc, and nothing about bars."""
    store = EmbeddingStore(folder)
    for photo in found.photos:
        image = np.array([1.0 if 0 in photo.classes else -1.0, 0.0, 0.5])
        store.write(photo.id, image, np.zeros((3, 12, 16)))
    store.write_prompts(Prompts(np.eye(3), 2))


def test_the_areas_tell_which_words_work(found, tmp_path):
    store_colours(tmp_path / 'out', found)
    aucs = check_prompts(found, tmp_path / 'out')
    assert aucs['disc'] == 1
    assert 0 <= aucs['bar'] <= 1
    # Photos of a class alone leave nothing to compare with.
    of_class = [photo for photo in found.photos if photo.classes == (0,)]
    some = type(found)(photos=of_class, class_names=found.class_names)
    assert check_prompts(some, tmp_path / 'out') == {'disc': None, 'bar': None}


def test_words_that_say_nothing_are_warned_about(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmwsss.apis.check_prompts.print_log', lambda *arguments: said.append(arguments)
    )
    good = check_prompt_separability(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0]))
    assert good == 1
    assert not said
    scores = torch.tensor([1.0, 2.0])
    assert check_prompt_separability(scores, scores, name='smoke') == 0.5
    ((text, _, level),) = said
    assert 'photos with smoke' in text
    assert 'AUC 0.50' in text
    assert level == logging.WARNING


def test_the_filter_reads_the_stored_embeddings(found, tmp_path):
    folder = tmp_path / 'out'
    store_colours(folder, found)
    step = parse_refiner(f'CLIPFilter(embeddings={str(folder)!r})')
    hashes = photo_input_hashes([step], found.photos)
    assert {len(own) for own in hashes.values()} == {2}
    refiner = CLIPFilter(embeddings=str(folder))
    read = read_photo_inputs(refiner, found.photos[0], (48, 64))
    ((cells, texts),) = read['embeddings']
    assert cells.shape == (3, 12, 16)
    assert texts.shape == (3, 3)
    # Other words make all labels anew, another photo's embeddings its own.
    EmbeddingStore(folder).write_prompts(Prompts(np.eye(3)[::-1], 2))
    again = photo_input_hashes([step], found.photos)
    assert all(hashes[name][1] != again[name][1] for name in hashes)
    EmbeddingStore(folder).write_prompts(Prompts(np.ones((3, 4)), 2))
    with pytest.raises(InputError, match='holds embeddings of 3 numbers, but'):
        read_photo_inputs(refiner, found.photos[0], (48, 64))
    (folder / 'prompts.npz').unlink()
    with pytest.raises(InputError, match=r'prompts\.npz does not exist; make it'):
        photo_input_hashes([step], found.photos)
    (folder / 'photo_1.npz').unlink()
    with pytest.raises(InputError, match='lacks the embeddings of 1 of 8 photos'):
        photo_input_hashes([step], found.photos)


def test_bad_files_are_one_sentence(tmp_path):
    store = EmbeddingStore(tmp_path)
    with pytest.raises(InputError, match='does not exist; make it with'):
        store.read('a')
    with pytest.raises(ValueError, match=r'must be \(E,\) and \(E, h, w\)'):
        store.write('a', np.zeros(3), np.zeros((2, 4, 4)))
    np.savez(tmp_path / 'a.npz', image=np.zeros(3), cells=np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match='must hold image'):
        store.read('a')
    (tmp_path / 'a.npz').write_bytes(b'PK nothing')
    with pytest.raises(InputError, match='cannot be read as embeddings'):
        store.read('a')
    store.write_prompts(Prompts(np.eye(3), 3))
    with pytest.raises(InputError, match=r'must hold texts .* \(3, 3\) and 3'):
        store.read_prompts()


def test_the_tool_says_what_the_prompts_can_tell(found, tmp_path, monkeypatch, capsys):
    arguments = (tmp_path / 'fake.py', '--model', CLIP['model'], '--weights')
    arguments += (CLIP['weights'], '--out', tmp_path / 'out', '--device', 'cpu')
    words = ('--background-words', 'sky', 'ground')
    monkeypatch.setattr('sys.argv', ['x', *map(str, (*arguments, *words))])
    assert check_prompts_command() == 0
    said = capsys.readouterr().out
    assert '8 embeddings of photos made, 0 were there' in said
    assert 'disc: AUC 0.' in said or 'disc: AUC 1.' in said
    message = fake_cams.refusal(
        check_prompts_command, monkeypatch, *arguments, *words, '--class-words', 'a'
    )
    assert '--class-words needs 2 words' in message
