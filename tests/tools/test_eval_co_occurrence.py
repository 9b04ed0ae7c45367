import json
from pathlib import Path

import fake_cams
import numpy as np
import pytest
import torch
from co_occurrence_cases import DECISIONS, PHOTOS, PIXEL_FIGURES, rows_and_columns
from PIL import Image

from mmwsss.apis.eval_co_occurrence import eval_co_occurrence_command, swap_gap
from mmwsss.datasets import CAMStore, StoredCAMs
from mmwsss.errors import InputError
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Four times the size, so that the store's grid of stride 4 has a cell per pixel.
    values = np.kron(np.asarray(mask), np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path):
    """The four photos twice: names beginning with v are for choosing thresholds."""
    store = CAMStore(tmp_path / 'store')
    probs = {}
    for start in ('', 'v'):
        for name, (target, distractor, predicted, prob) in PHOTOS.items():
            name = start + name
            save(tmp_path / 'masks' / f'{name}.png', target)
            save(tmp_path / 'distractors' / f'{name}.png', distractor)
            save(tmp_path / 'labels' / f'{name}.png', predicted)
            probs[name] = [prob]
            stored = StoredCAMs(
                classes=np.array([0]),
                cams=0.6 * target.float()[None].numpy(),
                size=(16, 16),
                probs=np.array([prob], np.float32),
            )
            store.write(name, stored)
        ids = [f'{start}{name}' for name in PHOTOS]
        (tmp_path / f'{start or "t"}.txt').write_text('\n'.join(ids))
    (tmp_path / 'probs.json').write_text(json.dumps(probs))
    (tmp_path / 'classes.txt').write_text('smoke\n')
    return tmp_path


def run(folder, monkeypatch, pred, *words):
    report = folder / 'report.json'
    common = ['--list', folder / 't.txt', '--classes', folder / 'classes.txt']
    words = [folder / pred, folder / 'masks', *common, '--json', report, *words]
    monkeypatch.setattr('sys.argv', ['eval_co_occurrence.py', *map(str, words)])
    assert eval_co_occurrence_command() == 0
    return json.loads(report.read_text())


@pytest.mark.parametrize('gate', ['none', 'pred', 'label'])
@pytest.mark.parametrize('jobs', [1, 2])
def test_label_maps_equal_the_count_by_hand(folder, monkeypatch, gate, jobs):
    report = run(
        folder,
        monkeypatch,
        'labels',
        *('--distractors', folder / 'distractors', '--probs', folder / 'probs.json'),
        *('--gate', gate, '--jobs', jobs),
    )
    (table,) = report['policies'].values()
    expected = {**PIXEL_FIGURES[gate], **DECISIONS}
    found = {name: table[name] for name in expected}
    assert found == {name: round(value, 4) for name, value in expected.items()}
    assert report['gate'].startswith(f'{gate}: ')
    assert 'class probability above 0.5' in report['decision']


def test_every_policy_says_where_its_threshold_is_from(folder, monkeypatch, capsys):
    report = run(
        folder,
        monkeypatch,
        'store',
        *('--distractors', folder / 'distractors', '--val-list', folder / 'v.txt'),
        *('--threshold', 0.65, '--gate', 'none'),
    )
    policies = report['policies']
    assert list(policies) == ['fixed', 'otsu', 'val', 'oracle']
    # Blocks of a mask are blurred at their edges when the CAMs are enlarged.
    assert policies['fixed']['img_fg_iou'] == 0
    assert policies['val']['threshold'] == policies['oracle']['threshold']
    assert 0.2 < policies['val']['threshold'] < 0.4
    assert policies['val']['img_fg_iou'] == policies['oracle']['img_fg_iou'] > 0.9
    assert policies['otsu']['img_fg_iou'] > 0.9
    assert policies['otsu']['threshold'] is None
    assert 'on 4 other photos' in policies['val']['policy']
    assert 'an oracle choice' in policies['oracle']['policy']
    assert policies['val']['TPR_obj_dis'] == 1
    shown = capsys.readouterr().out
    assert 'DAR' in shown
    assert 'an oracle choice' in shown


def test_without_distractors_and_val(folder, monkeypatch):
    policies = run(folder, monkeypatch, 'store')['policies']
    assert list(policies) == ['fixed', 'otsu', 'oracle']
    assert 'DAR' not in policies['fixed']
    assert policies['fixed']['FPR_img_neg'] == 0.5


def test_mistakes_are_named(folder, monkeypatch):
    def refused(sentence, pred, *words):
        with pytest.raises(InputError, match=sentence):
            run(folder, monkeypatch, pred, *words)

    refused('val needs a --val-list', 'store', '--policies', 'val')
    refused('the lists must share none', 'store', '--val-list', folder / 't.txt')
    refused('thresholds lie in', 'store', '--threshold', 3)
    refused('nowhere does not exist', 'nowhere')
    refused('--swap needs --photos', 'store', '--swap', 'a.py', 'a.pth')
    store = CAMStore(folder / 'store')
    nothing = StoredCAMs(
        classes=np.zeros(0, np.int64), cams=np.zeros((0, 4, 4)), size=(16, 16)
    )
    store.write('dis', nothing)
    refused(r'dis\.npz has no CAM of smoke.* --all-classes', 'store')
    assert run(folder, monkeypatch, 'store', '--gate', 'label')
    (folder / 'probs.json').write_text('{"both": [0.5]}')
    refused(
        'probabilities of dis must be 1', 'labels', '--probs', folder / 'probs.json'
    )
    for name in PHOTOS:
        mask = np.asarray(PHOTOS[name][0]) * 255
        save(folder / 'masks' / f'{name}.png', mask)
    refused('objects saved as 255 count as void', 'labels')


def test_painting_over_tells_what_a_network_looks_at():
    target, distractor = (torch.zeros(12, 12, dtype=torch.int64) for _ in range(2))
    target[1:4, 2:10], distractor[5:11, 5:7] = 1, 1
    photo = torch.full((3, 12, 12), 100, dtype=torch.uint8)
    photo[0, target == 1] = 200
    photo[1, distractor == 1] = 220

    def looks_at_object(image):
        return (image[0] > 150).any().float()[None]

    def looks_at_distractor(image):
        return (image[1] > 150).any().float()[None]

    pairs = [(photo, target, distractor), (photo, target, distractor * 0)]
    assert swap_gap(looks_at_object, pairs) == {
        'without_distractor': 0,
        'without_object': 1,
        'swap_gap': -1,
        'pairs': 1,
    }
    assert swap_gap(looks_at_distractor, pairs)['swap_gap'] == 1
    assert swap_gap(looks_at_object, pairs[1:])['swap_gap'] is None


@MODELS.register_module()
class LooksAtColour(torch.nn.Module):
    """Finds smoke by the share of the photo that is red, and half as much by green."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    @torch.no_grad()
    def class_probs(self, photo):
        red, green, _ = (photo > 150).float().mean((1, 2))
        return ((red + green / 2) * self.scale)[None]


@pytest.fixture
def swap(folder):
    """Photos of the masks, smoke red and its chimney green, and a network."""
    # Apart, so that neither is painted over with the other's colour.
    apart = rows_and_columns(rows=[0]), rows_and_columns(pixels=[(2, 1), (3, 1)])
    for name, (target, distractor, *_) in PHOTOS.items():
        if name == 'both':
            target, distractor = apart
            save(folder / 'masks/both.png', target)
            save(folder / 'distractors/both.png', distractor)
        pixels = np.full((16, 16, 3), 60, np.uint8)
        wide = np.ones((4, 4))
        pixels[np.kron(distractor.numpy(), wide) > 0] = (0, 200, 0)
        pixels[np.kron(target.numpy(), wide) > 0] = (200, 0, 0)
        path = folder / f'photos/{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    config = folder / 'colour.py'
    config.write_text("model = dict(type='mmwsss.LooksAtColour')\n")
    weights = {'state_dict': {'scale': torch.tensor(2.0)}, 'meta': {}}
    torch.save(weights, folder / 'colour.pth')
    words = ['--distractors', folder / 'distractors', '--photos', folder / 'photos']
    return [*words, '--swap', config, folder / 'colour.pth']


def test_a_network_is_asked_about_painted_photos(folder, swap, monkeypatch, capsys):
    gap = run(folder, monkeypatch, 'labels', *swap)['swap_gap']
    # Of 'both' alone: 4 of 16 cells are smoke, 2 its chimney, which counts half; the
    # weights of the checkpoint double what is seen.
    assert gap == {
        'without_distractor': 2 * 2 / 32,
        'without_object': 2 * 4 / 16,
        'swap_gap': -3 / 8,
        'pairs': 1,
    }
    assert f'swap_gap: {gap}' in capsys.readouterr().out


def test_mistakes_about_painted_photos_are_named(folder, swap, monkeypatch):
    def refused(sentence):
        with pytest.raises(InputError, match=sentence):
            run(folder, monkeypatch, 'labels', *swap)

    Image.new('RGB', (8, 16)).save(folder / 'photos/both.png')
    refused(r'both.png is 16 x 16, but the mask of the photo is 8 x 16')
    (folder / 'photos/both.png').unlink()
    refused('photos has no photo both')
    config = folder / 'colour.py'
    config.write_text("model = dict(type='mmwsss.FakeCAMNetwork')\n")
    fake_cams.write_checkpoint(folder / 'colour.pth')
    refused('FakeCAMNetwork gives no class probabilities')


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('[0.5]', 'must hold {id: '),
        ('{"both": 0.5}', 'must hold {id: '),
        ('{"both": ["much"]}', 'must hold {id: '),
        # Logits, by which every photo above 0.5 would have been decided.
        ('{"both": [3.2]}', r'has for both \[3.2\], which are no probabilities'),
        ('{"both": [-0.1]}', 'no probabilities'),
        ('{"both": [NaN]}', 'no probabilities'),
    ],
)
def test_what_are_no_probabilities(folder, monkeypatch, content, sentence):
    (folder / 'probs.json').write_text(content)
    with pytest.raises(InputError, match=sentence):
        run(folder, monkeypatch, 'labels', '--probs', folder / 'probs.json')


def test_files_that_do_not_fit_are_named(folder, monkeypatch):
    def refused(sentence, pred, *words):
        with pytest.raises(InputError, match=sentence):
            run(folder, monkeypatch, pred, *words)

    Image.new('L', (12, 16)).save(folder / 'labels/dis.png')
    refused(r'dis.png is 12 x 16, but the mask of the photo is 16 x 16', 'labels')
    store = CAMStore(folder / 'store')
    cams = np.zeros((2, 4, 4), np.float32)
    store.write('obj', StoredCAMs(np.arange(2), cams, (16, 16)))
    refused(r'obj.npz holds the CAM of class 2, but there are 1 classes', 'store')
    store.write('obj', StoredCAMs(np.arange(1), cams[:1], (16, 14)))
    refused(r'photo of 14 x 16 but its mask is 16 x 16', 'store')


def test_a_folder_of_label_maps_is_listed_once(folder, monkeypatch):
    """Not once a photo, which took the square of their number."""
    listed, real = [], Path.rglob

    def rglob(path, pattern):
        listed.append(path)
        return real(path, pattern)

    monkeypatch.setattr(Path, 'rglob', rglob)
    run(folder, monkeypatch, 'labels')
    assert listed.count(folder / 'labels') <= 1
