import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmwsss.apis.label_folders import evaluate_folders, read_ids, read_label_map
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
VOC = ROOT.parent / 'shared' / 'data' / 'voc12'
CLASSES = ['background', 'box', 'crate']


@pytest.fixture
def folders(tmp_path):
    pred, target = tmp_path / 'pred', tmp_path / 'gt'
    pred.mkdir()
    target.mkdir()
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], dtype=np.uint8)
    guess = np.array([[0, 1, 1, 1], [2, 255, 2, 0]], dtype=np.uint8)
    Image.fromarray(truth).save(target / 'a.png')
    Image.fromarray(guess).save(pred / 'a.png')
    return pred, target


def run_tool(*arguments):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / 'eval_pseudo_labels.py', *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tool_prints_percent_and_writes_json(folders, tmp_path):
    (tmp_path / 'ids.txt').write_text('a\n')
    (tmp_path / 'classes.txt').write_text('box\ncrate\n')
    done = run_tool(
        *folders,
        *('--list', tmp_path / 'ids.txt'),
        *('--classes', tmp_path / 'classes.txt'),
        *('--json', tmp_path / 'scores.json'),
    )
    assert done.returncode == 0, done.stderr
    # background 2/3, box 2/3, crate 1/1 of the decided pixels; 6 of 7 are decided.
    assert 'mIoU 77.78 over 3 of 3 classes, 1 images' in done.stdout
    assert '85.71 % of the scored pixels are decided' in done.stdout
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert scores['per_class'][2]['iou'] == 100


def test_tool_turns_bad_input_into_one_sentence(folders):
    done = run_tool(folders[0], folders[0] / 'nowhere')
    assert done.returncode == 1
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: the folder ')
    assert done.stdout == ''


def test_undecided_policies_differ(folders):
    scores = {
        policy: evaluate_folders(*folders, ids=['a'], classes=CLASSES, undecided=policy)
        for policy in ('leave_out', 'background', 'wrong')
    }
    crate = {p: s['per_class'][2]['iou'] for p, s in scores.items()}
    assert crate == {'leave_out': 100, 'background': 50, 'wrong': 50}
    assert scores['wrong']['per_class'][0]['iou'] == pytest.approx(66.6667)
    assert scores['background']['per_class'][0]['iou'] == pytest.approx(50)


def test_processes_add_up_to_the_same(folders):
    pred, target = folders
    generator = np.random.default_rng(1)
    for number in range(9):
        for folder in folders:
            values = generator.choice([0, 1, 2, 255], (5, 6)).astype(np.uint8)
            Image.fromarray(values).save(folder / f'b{number}.png')
    seen = []

    def progress(done, total):
        assert total == 10
        for pair in done:
            seen.append(pair[0].stem)
            yield pair

    scores = [
        evaluate_folders(*folders, ids=None, classes=CLASSES, undecided=policy, jobs=n)
        for policy in ('leave_out', 'wrong')
        for n in (1, 2)
    ]
    assert scores[0] == scores[1]
    assert scores[2] == scores[3]
    evaluate_folders(*folders, ids=None, classes=CLASSES, progress=progress)
    assert sorted(seen) == ['a', *(f'b{i}' for i in range(9))]
    spoil_size(pred, target)
    with pytest.raises(InputError, match='is 9 x 9 but its mask is 4 x 2'):
        evaluate_folders(*folders, ids=None, classes=CLASSES, jobs=2)


def test_maps_are_read_from_palette_grey_and_webp(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    grey = Image.fromarray(values)
    grey.save(tmp_path / 'grey.png')
    indexed = Image.fromarray(values, mode='P')
    indexed.putpalette(bytes(range(36)))
    indexed.save(tmp_path / 'indexed.png')
    grey.convert('RGB').save(tmp_path / 'lossless.webp', lossless=True)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / 'deep.png')
    for name in ('grey.png', 'indexed.png', 'lossless.webp', 'deep.png'):
        read = read_label_map(tmp_path / name)
        assert read.dtype == np.uint8
        assert (read == values).all(), name


def spoil_size(pred, target):
    Image.new('L', (9, 9)).save(pred / 'a.png')


def spoil_range(pred, target):
    Image.fromarray(np.full((2, 4), 7, dtype=np.uint8)).save(target / 'a.png')


def spoil_colour(pred, target):
    Image.new('RGB', (4, 2), (9, 0, 0)).save(pred / 'a.png')


def spoil_file(pred, target):
    data = (pred / 'a.png').read_bytes()
    (pred / 'a.png').write_bytes(data[: len(data) // 2])


def remove_mask(pred, target):
    (target / 'a.png').unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (spoil_size, 'is 9 x 9 but its mask is 4 x 2'),
        (spoil_range, 'holds the index 7, but there are 3 classes'),
        (spoil_colour, 'is a colour picture'),
        (spoil_file, 'cannot be read as a label map'),
        (remove_mask, 'has no map for image a'),
    ],
)
def test_spoilt_maps_are_named(folders, spoil, message):
    spoil(*folders)
    with pytest.raises(InputError, match=message) as caught:
        evaluate_folders(*folders, ids=None, classes=CLASSES)
    assert '\n' not in str(caught.value)


def test_lists_are_checked(tmp_path):
    path = tmp_path / 'ids.txt'
    path.write_text('a 1\n\nb -1\n')
    assert read_ids(path) == ['a', 'b']
    path.write_text('a\nb\na\n')
    with pytest.raises(InputError, match='names a more than once'):
        read_ids(path)
    path.write_text('\n')
    with pytest.raises(InputError, match='names no image'):
        read_ids(path)


def test_published_pseudo_labels_score_alike(tmp_path):
    """The first 60 of the archives, against a plain numpy count."""
    if not VOC.is_dir():
        pytest.skip('shared/data/voc12 is not there')
    maps = {}
    for folder, archive in (('pred', 'transcam_train'), ('gt', 'gt_train')):
        (tmp_path / folder).mkdir()
        with tarfile.open(VOC / f'{archive}.tar.xz') as tar:
            for member, _ in zip(tar, range(60), strict=False):
                data = tar.extractfile(member).read()
                (tmp_path / folder / Path(member.name).name).write_bytes(data)
                pixels = np.array(Image.open(io.BytesIO(data)).convert('RGB'))[..., 0]
                maps.setdefault(Path(member.name).stem, {})[folder] = pixels
    ids = sorted(name for name, pair in maps.items() if len(pair) == 2)
    assert len(ids) >= 50
    pred = np.concatenate([maps[name]['pred'].ravel() for name in ids])
    target = np.concatenate([maps[name]['gt'].ravel() for name in ids])
    pred, target = pred[target != 255], target[target != 255]
    ious = [
        ((pred == c) & (target == c)).sum() / ((pred == c) | (target == c)).sum()
        for c in np.unique(target)
    ]
    classes = [f'class {i}' for i in range(21)]
    result = evaluate_folders(
        tmp_path / 'pred', tmp_path / 'gt', ids=ids, classes=classes
    )
    assert result['miou'] == pytest.approx(100 * np.mean(ious), abs=1e-3)
