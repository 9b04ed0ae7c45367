import json
import signal
import subprocess
import time
from pathlib import Path

import fake_cams
import numpy as np
import pytest
import tiny_run
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmwsss.apis.cam_scores import SweepOptions, evaluate_store
from mmwsss.apis.label_folders import evaluate_folders
from mmwsss.apis.label_rules import BackgroundRule, parse_refiner
from mmwsss.apis.make_pseudo_labels import (
    LabelOptions,
    make_pseudo_labels,
    make_pseudo_labels_command,
    policy,
    reliability_of,
)
from mmwsss.apis.photos import list_photos
from mmwsss.datasets import CAMStore, LoadPseudoLabels, SegmentStore, StoredCAMs
from mmwsss.datasets.image_label_dataset import voc_palette
from mmwsss.errors import InputError
from mmwsss.functional import pamr, par

pytestmark = pytest.mark.mm
LABELS = 'SegmentationClass'


@pytest.fixture
def cams(tmp_path):
    """Config and a store of smooth CAMs with a background of their own."""
    config, _ = fake_cams.write(tmp_path)
    store = CAMStore(tmp_path / 'cams')
    labels = json.loads((tmp_path / 'data/image_labels.json').read_text())['labels']
    for number, (name, classes) in enumerate(labels.items()):
        generator = np.random.default_rng(number)
        keys = np.array(sorted(tiny_run.CLASSES.index(c) for c in classes), dtype=int)
        coarse = torch.from_numpy(generator.random((1, len(keys) + 1, 3, 4)))
        maps = torch.nn.functional.interpolate(coarse, (12, 16), mode='bilinear')[0]
        maps = maps.float().numpy()
        stored = StoredCAMs(
            classes=keys, cams=maps[1:], size=(48, 64), background=maps[0]
        )
        store.write(name, stored)
    return config, store


def make(cams, out, *, overwrite=False, jobs=1, background=('0.5',), **options):
    """The tool without its process; returns the number of photos labelled."""
    config = Config.fromfile(str(cams[0]))
    init_default_scope(config.default_scope)
    found = list_photos(config, split='train')
    options = {
        'config': str(cams[0]),
        'cams': cams[1].root if cams[1] else None,
        'backgrounds': [BackgroundRule.parse(text) for text in background],
        'out': out,
        'device': 'cpu',
        'num_classes': len(found.class_names),
    } | options
    return make_pseudo_labels(
        config,
        found,
        LabelOptions(**options),
        jobs=jobs,
        overwrite=overwrite,
        show=False,
    )


def read(out, name, folder=LABELS):
    return np.array(Image.open(out / folder / f'{name}.png'))


def upsampled(store, name):
    """(C, 48, 64) float64: own background, disc, bar at the photo's size."""
    stored = store.read(name)
    maps = torch.cat([torch.from_numpy(stored.background)[None], stored.dense(2)])
    return torch.nn.functional.interpolate(
        maps[None].double(), (48, 64), mode='bilinear', align_corners=False
    )[0].numpy()


def present(store, name):
    return [0, *(store.read(name).classes + 1).tolist()]


# ---------------------------------------------------------------------- what it makes
def test_labels_are_the_best_among_background_and_present_classes(cams, tmp_path):
    _, store = cams
    for rule, background in (('0.5', None), ('own', 1.0), ('own*0.7', 0.7)):
        out = tmp_path / rule.replace('*', '_')
        assert make(cams, out, background=(rule,)) == 8
        for number in range(8):
            name = f'photo_{number}'
            scores = upsampled(store, name)
            scores[0] = 0.5 if background is None else scores[0] * background
            allowed = present(store, name)
            expected = np.array(allowed)[scores[allowed].argmax(0)]
            assert (read(out, name) == expected).mean() > 0.999
    photo = read(tmp_path / '0.5', 'photo_0')
    assert photo.shape == (48, 64)
    assert (photo == 0).all()


def test_labels_score_as_their_cams_do(cams, tmp_path):
    config, store = cams
    masks, classes = config.parent / 'data/SegmentationClass', ['none', 'disc', 'bar']
    options = SweepOptions(fixed=0.4)
    scores = evaluate_store(
        store.root, masks, ids=None, classes=classes, options=options
    )
    for name, rule in (('fixed', '0.4'), ('own', 'own')):
        make(cams, tmp_path / name, background=(rule,))
        labels = evaluate_folders(
            tmp_path / name / LABELS, masks, ids=None, classes=classes
        )
        expected = scores['policies'][name]
        assert labels['per_class'] == expected['per_class']
        assert labels['miou'] == expected['miou']


def test_files_are_palette_pngs_that_a_training_reads(cams, tmp_path):
    make(cams, tmp_path / 'out', reliability=True)
    image = Image.open(tmp_path / f'out/{LABELS}/photo_3.png')
    assert image.mode == 'P'
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert palette[:21].tolist() == voc_palette(21)
    assert palette[255].tolist() == [224, 224, 192]
    load = LoadPseudoLabels(
        label_root=str(tmp_path / 'out' / LABELS),
        reliability_root=str(tmp_path / 'out/Reliability'),
        num_classes=3,
    )
    loaded = load.transform({'img_id': 'photo_3', 'ori_shape': (48, 64)})
    assert (loaded['gt_seg_map'] == read(tmp_path / 'out', 'photo_3')).all()
    assert loaded['reliability_map'].dtype == np.uint8


def test_two_thresholds_leave_a_band(cams, tmp_path):
    _, store = cams
    make(cams, tmp_path / 'out', low=0.4, high=0.7)
    for name in ('photo_0', 'photo_1', 'photo_3'):
        scores = upsampled(store, name)[1:]
        best = scores.max(0)
        expected = np.where(best >= 0.7, scores.argmax(0) + 1, 255)
        expected[best <= 0.4] = 0
        assert (read(tmp_path / 'out', name) == expected).mean() > 0.999
    assert (read(tmp_path / 'out', 'photo_3') == 255).any()


@pytest.mark.parametrize('rules', [('0.8', '0.3'), ('own', 'own*0.8')])
def test_ir_labels_are_what_two_backgrounds_agree_on(cams, tmp_path, rules):
    _, store = cams
    make(cams, tmp_path / 'ir', background=rules)
    factor = [0.8, 0.3] if rules[0] == '0.8' else [1.0, 0.8]
    for name in ('photo_0', 'photo_2', 'photo_3'):
        opinions = []
        for value in factor:
            scores = upsampled(store, name)
            scores[0] = value if rules[0] == '0.8' else scores[0] * value
            allowed = present(store, name)
            opinions.append(np.array(allowed)[scores[allowed].argmax(0)])
        sure, weak = opinions
        expected = np.where(sure > 0, sure, np.where(weak == 0, 0, 255))
        assert (read(tmp_path / 'ir', name) == expected).mean() > 0.999
    assert set(np.unique(read(tmp_path / 'ir', 'photo_3'))) == {0, 1, 2, 255}


def test_refiners_work_in_order_on_the_photo(cams, tmp_path):
    config, store = cams
    chain = [parse_refiner(t) for t in ('PAR(num_iters=2, scale=1.0)', 'PAMR')]
    make(cams, tmp_path / 'one', background=('own',), refiners=chain[:1])
    make(cams, tmp_path / 'two', background=('own',), refiners=chain)
    name = 'photo_3'
    photo = Image.open(config.parent / f'data/JPEGImages/{name}.jpg')
    image = torch.from_numpy(np.array(photo)).movedim(-1, 0)[None].float() / 255
    stored = store.read(name)
    scores = torch.cat([torch.from_numpy(stored.background)[None], stored.dense(2)])
    expected = par(image, scores[None], num_iters=2, normalize=True)
    assert (read(tmp_path / 'one', name) == expected[0].argmax(0).numpy()).all()
    expected = pamr(image, expected)[0].argmax(0)
    assert (read(tmp_path / 'two', name) == expected.numpy()).all()


def store_segments(root, ids, *, first_column=0):
    """One segment a photo, its right part."""
    for name in ids:
        mask = np.zeros((48, 64), bool)
        mask[:, first_column:] = True
        SegmentStore(root).write(name, [mask])


def test_a_refiner_reads_the_stored_segments_of_its_photo(cams, tmp_path):
    plain, out = tmp_path / 'plain', tmp_path / 'out'
    ids = [f'photo_{number}' for number in range(8)]
    store_segments(tmp_path / 'segments', ids, first_column=20)
    step = f'SAMMerge(segments={str(tmp_path / "segments")!r}, rule="sepl")'
    chain = dict(refiners=[parse_refiner(step)])
    make(cams, plain, background=('own',))
    assert make(cams, out, background=('own',), **chain) == 8
    merged = 0
    for name in ids:
        before, after = read(plain, name), read(out, name)
        # The rule by hand: one segment, for the most frequent class that fits it.
        right = before[:, 20:]
        counts = {
            k: (right == k).sum()
            for k in set(right.flat) - {0}
            if (right == k).mean() > 0.5
            or (right == k).sum() >= 0.85 * (before == k).sum()
        }
        best = max(counts, key=counts.get, default=0)
        assert (after[:, 20:] == best).all()
        merged += best > 0
        assert np.array_equal(before[:, :20], after[:, :20])
    assert merged
    # Another place of the same files changes nothing, other segments one photo.
    (tmp_path / 'segments').rename(tmp_path / 'moved')
    step = step.replace(str(tmp_path / 'segments'), str(tmp_path / 'moved'))
    chain = dict(refiners=[parse_refiner(step)])
    assert make(cams, out, background=('own',), **chain) == 0
    store_segments(tmp_path / 'moved', ['photo_3'], first_column=30)
    assert make(cams, out, background=('own',), **chain) == 1


def test_other_weights_of_a_refiner_make_other_labels(cams, tmp_path):
    towers = tiny_run.ROOT / 'mmwsss/datasets/tiny_towers'
    weights = tmp_path / 'clip.safetensors'
    weights.write_bytes((towers / 'clip.safetensors').read_bytes())
    step = (
        f'CLIPFilter(model={str(towers / "clip.json")!r}, weights={str(weights)!r}, '
        'class_names=["disc", "bar"], background_words=["sky"])'
    )
    chain = dict(refiners=[parse_refiner(step)])
    assert make(cams, tmp_path / 'out', **chain) == 8
    # The same file at another place is the same; other weights are not.
    moved = step.replace(str(weights), str(towers / 'clip.safetensors'))
    assert make(cams, tmp_path / 'out', refiners=[parse_refiner(moved)]) == 0
    weights.write_bytes(weights.read_bytes() + b' ')
    with pytest.raises(InputError, match='another chain of refiners'):
        make(cams, tmp_path / 'out', **chain)


def test_missing_and_foreign_segments_are_one_sentence(cams, tmp_path):
    out, root = tmp_path / 'out', tmp_path / 'segments'
    chain = dict(refiners=[parse_refiner(f'SAMMerge(segments={str(root)!r})')])
    store_segments(root, [f'photo_{number}' for number in range(6)])
    with pytest.raises(InputError, match='lacks the segments of 2 of 8 photos'):
        make(cams, out, **chain)
    SegmentStore(root).write('photo_6', np.ones((1, 20, 30), bool))
    SegmentStore(root).write('photo_7', np.ones((1, 48, 64), bool))
    with pytest.raises(InputError, match=r'photo_6.* of \(20, 30\), but .* \(48, 64\)'):
        make(cams, out, **chain)
    assert len(list((out / LABELS).glob('*.png'))) == 6


def test_reliability_is_the_share_of_the_label_in_the_scores(cams, tmp_path):
    _, store = cams
    make(cams, tmp_path / 'out', background=('own',), reliability=True)
    for name in ('photo_0', 'photo_1', 'photo_3'):
        scores = upsampled(store, name)[present(store, name)]
        expected = scores.max(0) / scores.sum(0)
        found = read(tmp_path / 'out', name, 'Reliability') / 255
        np.testing.assert_allclose(found, expected, atol=0.003)
    scores = torch.tensor([0.2, 0.6, 9.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 4)
    scores[..., 2] = 0
    label = torch.tensor([[[1, 255, 0, 0]]])
    found = reliability_of(scores, label, torch.tensor([[1.0, 0.0]]))
    assert found[0, 0].tolist() == pytest.approx([0.75, 0, 0, 0.25])


def test_segmentor_labels_are_its_predictions_among_the_photos_classes(tmp_path):
    from mmseg.registry import MODELS

    root = tiny_run.draw(tmp_path / 'data')
    content = tiny_run.config(root)
    steps = [dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.LoadMask')]
    dataset = content['train_dataloader']['dataset']
    content['val_dataloader'] = dict(
        dataset={**dataset, 'pipeline': [*steps, dict(type='mmwsss.PackWSSSInputs')]}
    )
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(str(path)).model).eval()
    checkpoint = tmp_path / 'tiny.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    source = {'checkpoint': checkpoint, 'background': ('own',)}
    # A mask that cannot be read does not matter.
    (root / 'SegmentationClass/photo_3.png').write_bytes(b'no mask')
    assert make((path, None), tmp_path / 'out', **source) == 8
    for name, allowed in (
        ('photo_0', [0]),
        ('photo_1', [0, 1]),
        ('photo_3', [0, 1, 2]),
    ):
        photo = np.array(Image.open(root / f'JPEGImages/{name}.jpg'))
        image = torch.from_numpy(photo).movedim(-1, 0)[None].float() / 255
        with torch.no_grad():
            logits = model.encode_decode(image, [{'img_shape': (48, 64)}])
            logits = torch.nn.functional.interpolate(
                logits, (48, 64), mode='bilinear', align_corners=False
            )[0]
        expected = np.array(allowed)[logits[allowed].argmax(0).numpy()]
        assert (read(tmp_path / 'out', name) == expected).mean() > 0.999
        # Thresholds are on probabilities among these classes.
        best = logits[allowed].softmax(0)[1:].numpy().max(0, initial=0)
        limit = float(np.median(best)) if len(allowed) > 1 else 0.5
        out = tmp_path / name
        make((path, None), out, **source, low=limit, high=limit)
        assert ((read(out, name) > 0) == (best >= limit)).mean() > 0.99


def test_the_policy_names_what_decides(tmp_path):
    def said(**options):
        options.setdefault('backgrounds', [BackgroundRule.parse('0.25')])
        return policy(LabelOptions(config='', out=tmp_path, **options))

    assert said() == ('image labels given; background 0.25; best class at every pixel')
    assert 'refined by PAMR; 255 for scores between 0.2 and 0.4' in said(
        refiners=[parse_refiner('PAMR')], low=0.2, high=0.4
    )
    rules = [BackgroundRule.parse(t) for t in ('own', 'own*0.8')]
    assert 'own*1 and own*0.8; 255 where the two disagree' in said(backgrounds=rules)


# ------------------------------------------------------------ going on, changed inputs
def test_it_makes_what_is_missing_and_what_has_changed(cams, tmp_path):
    _, store = cams
    out = tmp_path / 'out'
    make(cams, out)
    whole = fake_cams.contents(out)
    assert make(cams, out) == 0
    (out / LABELS / 'photo_6.png').unlink()
    assert make(cams, out) == 1
    assert fake_cams.contents(out) == whole
    # Reliability maps were not asked for before.
    assert make(cams, out, reliability=True) == 8
    # The CAMs of one photo are made again from something else.
    stored = store.read('photo_2')
    store.write('photo_2', StoredCAMs(stored.classes, 1 - stored.cams, stored.size))
    before = fake_cams.contents(out)
    assert make(cams, out, reliability=True) == 1
    after = fake_cams.contents(out)
    changed = {name for name in before if before[name] != after[name]}
    assert f'{LABELS}/photo_2.png' in changed
    assert not [n for n in changed if 'photo' in n and 'photo_2' not in n]


def test_other_settings_are_refused_and_lose_nothing(cams, tmp_path):
    out = tmp_path / 'out'
    make(cams, out)
    before = fake_cams.contents(out)
    for options, message in [
        ({'background': ('0.4',)}, 'another background: it was 0.5 and is now 0.4'),
        ({'low': 0.2, 'high': 0.5}, 'another low and high'),
        (
            {'refiners': [parse_refiner('PAMR(num_iters=3)')]},
            r'another chain of refiners: .* is now PAMR\(num_iters=3\)',
        ),
    ]:
        with pytest.raises(InputError, match=message):
            make(cams, out, **options)
    assert fake_cams.contents(out) == before
    assert make(cams, out, background=('0.4',), overwrite=True) == 8


def test_missing_and_wrong_cams_are_named(cams, tmp_path):
    config, store = cams
    root = config.parent / 'data'
    fake_cams.relabel(root, 'photo_1', ['bar'])
    with pytest.raises(
        InputError, match=r'photo_1\.npz holds CAMs of the classes \[0\]'
    ):
        make(cams, tmp_path / 'out')
    store.path('photo_4').unlink()
    store.path('photo_7').unlink()
    with pytest.raises(
        InputError, match='lacks the CAMs of 2 of 8 photos, the first is'
    ):
        make(cams, tmp_path / 'out')


# ------------------------------------------------------------------ the command line
def test_the_tool_says_what_it_made_and_how(cams, tmp_path):
    config, store = cams
    out = tmp_path / 'out'
    arguments = (config, '--cams', store.root, '--out', out, '--jobs', '2')
    done = fake_cams.run('make_pseudo_labels.py', *arguments, '--refine', 'PAMR')
    assert done.returncode == 0, done.stderr
    assert f'8 label maps made, 0 were there: {out}' in done.stdout
    assert (
        'policy: image labels given; background own*1; refined by PAMR; best class'
    ) in done.stdout
    # Two processes make what one makes.
    make(cams, tmp_path / 'one', background=('own',), refiners=[parse_refiner('PAMR')])
    assert fake_cams.contents(out) == fake_cams.contents(tmp_path / 'one')


def test_bad_input_is_one_sentence(cams, tmp_path, monkeypatch):
    config, store = cams
    start = (config, '--cams', store.root, '--out', tmp_path / 'out')
    cases = [
        ((*start, '--background', '25'), "the background '25' is none of"),
        ((*start, '--low', '0.3'), 'give both --low and --high'),
        ((*start, '--low', '0.6', '--high', '0.3'), 'low <= high'),
        ((*start, '--ir', '0.3', '0.05', '--reliability'), '--ir decides where'),
        ((*start, '--refine', 'PAM'), "'PAM' is no refiner of scores"),
        (
            (*start[:2], tmp_path / 'none', *start[3:]),
            'none/photo_0.npz does not exist',
        ),
        ((config, '--checkpoint', 'none.pth', *start[3:]), 'none.pth does not exist'),
    ]
    for arguments, expected in cases:
        assert expected in fake_cams.refusal(
            make_pseudo_labels_command, monkeypatch, *arguments
        )
    # Started as a program, too.
    done = fake_cams.run('make_pseudo_labels.py', *cases[0][0])
    assert cases[0][1] in fake_cams.sentence(done)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(cams, tmp_path):
    config, store = cams
    out = tmp_path / 'out'
    # Slow enough to be killed in the middle.
    refine = 'PAMR(num_iters=800)'
    arguments = (config, '--cams', store.root, '--out', out, '--refine', refine)
    process = subprocess.Popen(
        fake_cams.command('make_pseudo_labels.py', *arguments),
        env=fake_cams.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tiny_run.ROOT,
    )
    deadline = time.monotonic() + 240
    while not labels_in(out):
        assert process.poll() is None, 'the run ended before it could be killed'
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(labels_in(out)) < 8
    done = fake_cams.run('make_pseudo_labels.py', *arguments)
    assert done.returncode == 0, done.stderr
    assert '8 label maps made' not in done.stdout
    make(
        cams, tmp_path / 'whole', background=('own',), refiners=[parse_refiner(refine)]
    )
    assert fake_cams.contents(out) == fake_cams.contents(tmp_path / 'whole')


def labels_in(out: Path):
    return list((out / LABELS).glob('[!.]*.png'))
