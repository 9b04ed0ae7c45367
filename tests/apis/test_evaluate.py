import json
from pathlib import Path

import fake_run
import pytest
import torch

from mmwsss.apis import evaluate as evaluate_module
from mmwsss.apis.evaluate import EvaluationOptions, evaluate_run, find_checkpoint
from mmwsss.errors import InputError
from mmwsss.visualization.report import write_report

pytestmark = pytest.mark.mm


@pytest.fixture
def root(tmp_path):
    return fake_run.draw_photos(tmp_path / 'photos')


def run(tmp_path, root, *, pad=0, name='out', **options):
    config = fake_run.write_run(tmp_path / 'run', root, pad=pad)
    options = EvaluationOptions(num_pictures=2, **options)
    return evaluate_run(
        config, tmp_path / 'run', tmp_path / name, options=options, device='cpu'
    )


def number(metrics, key):
    return next(n for n in metrics['numbers'] if n['key'] == key)


def test_numbers_are_those_built_into_the_fake_run(tmp_path, root):
    metrics = run(tmp_path, root)
    # The CAM is 0.4 on the object's rim and 1 in its core; refinement is the truth.
    assert number(metrics, 'train/refined')['miou'] == 100
    best = number(metrics, 'train/raw_cams')
    assert best['threshold'] == 0.01
    assert best['miou'] == 100
    sweep = metrics['sweeps']['train']
    core, whole = (24 - 8) ** 2, 24**2
    assert number(metrics, 'val/raw_cams')['threshold'] == 0.01
    box = fake_cam_iou(sweep['miou'][49], best, whole, core)
    assert box == pytest.approx(100 * core / whole, abs=0.01)
    labels = number(metrics, 'train/labels')
    assert labels['miou'] == 100
    assert labels['kept'] < 100
    # The segmentor is off by 4 columns: 20 of 24 overlap.
    segmentor = number(metrics, 'val/segmentor')['per_class'][1]
    assert segmentor['iou'] == pytest.approx(100 * 20 / 28, abs=0.01)
    assert number(metrics, 'val/segmentor')['policy'] == 'no image labels used'
    assert number(metrics, 'val/segmentor')['per_class'][3]['iou'] is None


def fake_cam_iou(mean, best, whole, core):
    """Box and crate share one IoU; undo the mean with background's IoU."""
    pixels = best['per_class'][0]['pixels']
    missed = (whole - core) * 4
    background = 100 * pixels / (pixels + missed)
    return (3 * mean - background) / 2


def test_padding_of_the_model_does_not_change_the_numbers(tmp_path, root):
    plain = run(tmp_path, root, name='plain')
    padded = run(tmp_path, root, pad=32, name='padded')
    assert plain['numbers'] == padded['numbers']


def test_finished_parts_are_not_computed_again(tmp_path, root, monkeypatch):
    first = run(tmp_path, root)

    def refuse(*args, **kwargs):
        raise AssertionError('computed again')

    monkeypatch.setattr(evaluate_module, 'evaluate_split', refuse)
    again = run(tmp_path, root)
    assert again['numbers'] == first['numbers']
    assert again['run']['iteration'] == 40
    (tmp_path / 'out' / first['pictures']['val'][0]['tiles'][0]['file']).unlink()
    with pytest.raises(AssertionError, match='computed again'):
        run(tmp_path, root)


def test_another_checkpoint_is_computed_again(tmp_path, root, monkeypatch):
    run(tmp_path, root)
    config = tmp_path / 'run' / 'fake_config.py'
    changed = tmp_path / 'run' / 'other.pth'
    content = torch.load(tmp_path / 'run' / 'iter_40.pth')
    content['state_dict']['noise'] += 0.5
    torch.save(content, changed)
    options = EvaluationOptions(num_pictures=2)
    metrics = evaluate_run(
        config, changed, tmp_path / 'out', options=options, device='cpu'
    )
    assert number(metrics, 'val/segmentor')['per_class'][1]['iou'] < 60


@pytest.mark.parametrize('count', [0, 1, 3, 99])
def test_worst_photos_so_far_are_those_of_a_sort(count):
    rng = torch.Generator().manual_seed(count)
    scores = torch.randint(0, 6, (40,), generator=rng).tolist()
    # Photos without a mask.
    scores[3] = scores[20] = None
    worst, kept = evaluate_module.WorstPhotos(count), set()
    for position, score in enumerate(scores):
        entered, dropped = worst.add(position, score)
        if entered:
            kept.add(position)
        if dropped is not None:
            kept.remove(dropped)
    known = [i for i, score in enumerate(scores) if score is not None]
    assert kept == set(sorted(known, key=scores.__getitem__)[:count])


def test_the_worst_photos_are_drawn_beside_the_fixed_ones(tmp_path, root):
    metrics = run(tmp_path, root)
    scores = metrics['photo_scores']['val']
    pictures = metrics['pictures']['val']
    assert len(scores) == metrics['photos']['val']
    drawn = {picture['id']: picture['fixed'] for picture in pictures}
    # Sorting is stable: the first of equal ones stay.
    worst = sorted(scores, key=scores.get)[:2]
    assert set(worst) <= set(drawn)
    assert sum(drawn.values()) == 2
    assert {name for name, fixed in drawn.items() if not fixed} <= set(worst)
    assert all(
        picture['iou']['prediction'] == scores[picture['id']] for picture in pictures
    )
    folders = {Path(p['tiles'][0]['file']).parent.name for p in pictures}
    left = {path.name for path in (tmp_path / 'out' / 'pictures' / 'val').iterdir()}
    assert left == folders
    confusion = torch.tensor(metrics['confusion']['val']['segmentor'])
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    table = number(metrics, 'val/segmentor')['per_class']
    for k, entry in enumerate(table):
        if entry['iou'] is not None:
            iou = 100 * confusion[k, k] / union[k]
            assert entry['iou'] == pytest.approx(float(iou), abs=1e-3)


def test_photos_without_masks_are_drawn_but_not_scored(tmp_path, root):
    for path in (root / 'SegmentationClass').glob('train_*'):
        path.unlink()
    metrics = run(tmp_path, root)
    assert {n['split'] for n in metrics['numbers']} == {'val'}
    assert metrics['without_mask'] == {'train': 6, 'val': 0}
    titles = [tile['title'] for tile in metrics['pictures']['train'][0]['tiles']]
    assert 'Truth' not in titles
    assert 'Segmentor' in titles
    # No threshold can be chosen, so only the fixed one is told.
    assert 'val/raw_cams' not in [n['key'] for n in metrics['numbers']]
    assert 'Validation photos' in write_report(tmp_path / 'out').read_text()


def test_metrics_file_and_report(tmp_path, root):
    metrics = run(tmp_path, root)
    stored = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert stored == metrics
    page = write_report(tmp_path / 'out').read_text()
    assert 'decode.loss_ce' in page
    assert 'ghost' in page
    assert page.count('<figure ') == sum(
        len(p['tiles']) for s in metrics['pictures'].values() for p in s
    )


def test_one_split_alone(tmp_path, root):
    metrics = run(tmp_path, root, splits=('val',))
    assert {n['key'] for n in metrics['numbers']} == {
        'val/raw_cams_fixed',
        'val/refined',
        'val/labels',
        'val/segmentor',
    }


def test_bad_input_is_one_sentence(tmp_path, root):
    config = fake_run.write_run(tmp_path / 'run', root)
    out = tmp_path / 'out'
    with pytest.raises(InputError, match=r'nowhere\.pth does not exist'):
        evaluate_run(config, tmp_path / 'nowhere.pth', out)
    with pytest.raises(InputError, match='holds no last_checkpoint'):
        evaluate_run(config, root, out)
    with pytest.raises(InputError, match=r'config .*missing\.py does not exist'):
        evaluate_run(tmp_path / 'missing.py', tmp_path / 'run', out)
    broken = tmp_path / 'broken.pth'
    torch.save({'state_dict': {'other': torch.zeros(1)}}, broken)
    with pytest.raises(InputError, match='does not fit the model'):
        evaluate_run(config, broken, out)
    config.write_text(config.read_text().replace('train_eval_', 'no_'))
    with pytest.raises(InputError, match='has no train_eval_dataloader'):
        evaluate_run(config, tmp_path / 'run', out)
    with pytest.raises(InputError, match='test'):
        EvaluationOptions(splits=('test',))


def test_find_checkpoint_in_a_moved_work_directory(tmp_path, root):
    fake_run.write_run(tmp_path / 'run', root)
    moved = (tmp_path / 'run').rename(tmp_path / 'moved')
    assert find_checkpoint(moved) == moved / 'iter_40.pth'
    (moved / 'iter_40.pth').unlink()
    with pytest.raises(InputError, match='which does not exist'):
        find_checkpoint(moved)


def test_a_network_that_explains_nothing_is_one_sentence(tmp_path, root, monkeypatch):
    config = fake_run.write_run(tmp_path / 'run', root)
    monkeypatch.delattr(fake_run.FakeSegmentor, 'explain')
    with pytest.raises(InputError, match=r'FakeSegmentor.*make_cams\.py.*test\.py'):
        evaluate_run(config, tmp_path / 'run', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
