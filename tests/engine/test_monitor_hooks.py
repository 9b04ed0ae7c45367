"""The hooks that watch: what they measure and draw, and that they change nothing."""

import random
import zlib
from types import SimpleNamespace

import fake_run
import numpy as np
import pytest
import tiny_run
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

import mmwsss.datasets
import mmwsss.engine
import mmwsss.models  # noqa: F401
from mmwsss.engine import monitor_hooks
from mmwsss.engine.monitor_hooks import (
    PseudoLabelProbeHook,
    PseudoLabelVisualizationHook,
    spread_positions,
    untouched,
)
from mmwsss.errors import InputError
from mmwsss.models.segmentors import WSSSSegmentor
from mmwsss.registry import DATASETS, MODELS
from mmwsss.visualization.colors import BAND_COLOR
from mmwsss.visualization.sheet import CAPTION_PX, GAP_PX, TILE_SIDE_PX

pytestmark = pytest.mark.mm


class Frozen(nn.Dropout):
    """Stays in eval mode, as frozen encoders do."""

    def train(self, mode=True):
        return super().train(False)


class Careless(nn.Sequential):
    """Its train() wakes every part, also one that was put to sleep by hand."""

    def train(self, mode=True):
        for part in self:
            part.training = True
        self.training = mode
        return self


def dozing_model():
    """Every part is in a mode of its own, also in one that train() would not give."""
    model = nn.Sequential(
        nn.Dropout(), Frozen(), nn.BatchNorm1d(2), Careless(nn.Dropout(), nn.Dropout())
    )
    model.append(Frozen()).train()
    model[2].eval()
    model[3][1].training = False
    model[4].training = True
    model.progress = 0.25
    return model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def seed_all():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_lent_model_comes_back_as_it_was(wrapped, fails):
    model = dozing_model()
    before = modes(model)
    assert before == {
        **{'': True, '0': True, '1': False, '2': False},
        **{'3': True, '3.0': True, '3.1': False, '4': True},
    }
    seed_all()
    expected = draws()
    seed_all()

    def use():
        lent = nn.DataParallel(model) if wrapped else model
        with untouched(lent, progress=0.75) as inner:
            assert inner is model
            assert inner.progress == 0.75
            assert not torch.is_grad_enabled()
            assert not inner[0].training
            draws()
            inner[0].train()
            inner.progress = 0.9
            if fails:
                raise RuntimeError('in the middle')

    if fails:
        with pytest.raises(RuntimeError, match='in the middle'):
            use()
    else:
        use()
    assert modes(model) == before
    assert model.progress == 0.25
    assert torch.is_grad_enabled()
    assert draws() == expected


def test_a_model_without_progress_gets_none():
    model = nn.Linear(1, 1)
    with untouched(model, progress=0.5):
        assert not model.training
    assert model.training
    assert not hasattr(model, 'progress')


def test_positions_are_the_middles_of_equal_parts():
    assert spread_positions(10, 5) == [1, 3, 5, 7, 9]
    assert spread_positions(3, 5) == [0, 1, 2]
    assert spread_positions(7, 1) == [3]
    assert spread_positions(0, 4) == []
    for size in range(1, 40):
        for count in range(1, size + 1):
            found = spread_positions(size, count)
            expected = [int((i + 0.5) / count * size + 1e-9) for i in range(count)]
            assert found == expected, (size, count)
            assert len(set(found)) == count


# ------------------------------------------------------------------------- the probe
class Guesser(nn.Module):
    """Explains a photo by noise that depends on its id, and notes how it was asked."""

    num_classes = 4

    def __init__(self, *, pad=0):
        super().__init__()
        self.data_preprocessor = SegDataPreProcessor(
            mean=[0.0] * 3,
            std=[255.0] * 3,
            bgr_to_rgb=True,
            test_cfg={'size_divisor': pad} if pad else None,
        )
        self.progress = 0.125
        self.asked, self.progresses = [], []

    def maps(self, image_id, size):
        generator = torch.Generator().manual_seed(zlib.crc32(image_id.encode()))
        shape = (self.num_classes, *size)
        label = torch.randint(0, self.num_classes + 1, size, generator=generator)
        return dict(
            cams=torch.rand(shape, generator=generator)[1:],
            refined=torch.rand(shape, generator=generator),
            seg_logits=torch.randn(shape, generator=generator),
            pseudo_label=label.masked_fill(label == self.num_classes, 255),
        )

    def explain(self, inputs, data_samples):
        assert not self.training
        ids = [sample.img_id for sample in data_samples]
        self.asked += ids
        self.progresses.append(self.progress)
        parts = [self.maps(image_id, tuple(inputs.shape[-2:])) for image_id in ids]
        return SimpleNamespace(
            **{name: torch.stack([p[name] for p in parts]) for name in parts[0]}
        )


class Notes:
    """A visualiser that keeps what it is given."""

    def __init__(self):
        self.scalars, self.images = [], []

    def add_scalars(self, values, step):
        self.scalars.append((step, dict(values)))

    def add_image(self, name, image, step):
        self.images.append((name, image, step))


def runner_for(model, *, cfg=None, max_iters=7, iteration=0, dataset=None):
    name = f'probe_{id(model)}_{iteration}'
    return SimpleNamespace(
        iter=iteration,
        max_iters=max_iters,
        model=model,
        cfg=Config(cfg or {}),
        message_hub=MessageHub(name),
        visualizer=Notes(),
        logger=MMLogger(name),
        train_dataloader=SimpleNamespace(dataset=dataset),
    )


@pytest.fixture
def photos(tmp_path):
    return fake_run.draw_photos(tmp_path / 'photos')


def loader_of(root, **options):
    return dict(
        dataset=dict(type='mmwsss.FakePhotos', root=str(root), split='train'), **options
    )


def go_through(hook, runner):
    """What a training calls, from the iteration that the runner is at."""
    hook.before_train(runner)
    for iteration in range(runner.iter, runner.max_iters):
        runner.iter = iteration
        hook.after_train_iter(runner, iteration)


def slow_miou(pairs):
    """Percent, pixel by pixel, over the classes that decided pixels are of."""
    hit, of_target, of_label = {}, {}, {}
    for label, target in pairs:
        for row, truth in zip(label.tolist(), target.tolist(), strict=True):
            for mine, real in zip(row, truth, strict=True):
                if mine == 255 or real == 255:
                    continue
                of_target[real] = of_target.get(real, 0) + 1
                of_label[mine] = of_label.get(mine, 0) + 1
                hit[real] = hit.get(real, 0) + (mine == real)
    ious = [hit[c] / (n + of_label.get(c, 0) - hit[c]) for c, n in of_target.items()]
    return 100 * sum(ious) / len(ious)


def slow_best(scores, allowed):
    """(C, H, W) -> (H, W): best of the allowed classes, pixel by pixel."""
    _, height, width = scores.shape
    best = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            best[y, x] = max(allowed, key=lambda c: scores[c, y, x].item())
    return best


def slow_scores(model, dataset, positions, *, pad=0):
    pairs = dict(pseudo_label=[], refined=[], segmentor=[])
    scored = decided = 0
    for position in positions:
        sample = dataset[position]['data_samples']
        target = sample.gt_sem_seg.data[0].numpy()
        height, width = target.shape
        size = tuple(-(-n // pad) * pad if pad else n for n in target.shape)
        maps = {
            name: values[..., :height, :width]
            for name, values in model.maps(sample.img_id, size).items()
        }
        label = maps['pseudo_label'].numpy()
        present = [c for c in (1, 2, 3) if sample.image_label[c - 1]]
        pairs['pseudo_label'].append((label, target))
        pairs['refined'].append((slow_best(maps['refined'], [0, *present]), target))
        pairs['segmentor'].append((slow_best(maps['seg_logits'], range(4)), target))
        scored += (target != 255).sum()
        decided += ((target != 255) & (label != 255)).sum()
    numbers = {f'probe/{name}_miou': slow_miou(p) for name, p in pairs.items()}
    return numbers | {'probe/decided_share': 100 * decided / scored}


@pytest.mark.parametrize('pad', [0, 32])
def test_probe_scores_equal_a_loop_over_pixels(photos, pad):
    model = Guesser(pad=pad)
    loader = loader_of(photos)
    runner = runner_for(model, cfg=dict(train_eval_dataloader=loader))
    hook = PseudoLabelProbeHook(num_images=4)
    hook.before_train(runner)
    dataset = DATASETS.build(loader['dataset'])
    positions = [0, 2, 3, 5]
    expected = slow_scores(model, dataset, positions, pad=pad)
    assert [dataset.ids[i] for i in positions] == model.asked
    [(step, found)] = runner.visualizer.scalars
    assert step == 0
    assert found == pytest.approx(expected, abs=1e-3)
    for name, value in expected.items():
        logged = runner.message_hub.get_scalar(name)
        assert logged.current() == pytest.approx(value, abs=1e-3)


def test_own_dataloader_comes_before_the_runs(photos, tmp_path):
    other = fake_run.draw_photos(tmp_path / 'other', num_train=2)
    model = Guesser()
    runner = runner_for(model, cfg=dict(train_eval_dataloader=loader_of(photos)))
    # Every photo of a set that is smaller than num_images.
    PseudoLabelProbeHook(dataloader=loader_of(other)).before_train(runner)
    assert model.asked == ['train_0', 'train_1']


@pytest.mark.parametrize(('max_iters', 'steps'), [(6, [0, 3, 6]), (7, [0, 3, 6, 7])])
def test_probe_comes_first_now_and_then_and_last(photos, max_iters, steps):
    model = Guesser()
    runner = runner_for(
        model, cfg=dict(train_eval_dataloader=loader_of(photos)), max_iters=max_iters
    )
    go_through(PseudoLabelProbeHook(num_images=1, interval=3), runner)
    assert [step for step, _ in runner.visualizer.scalars] == steps
    assert model.progresses == [step / max_iters for step in steps]
    assert model.progress == 0.125
    data, _ = runner.message_hub.get_scalar('probe/refined_miou').data
    assert len(data) == len(steps)


def test_a_resumed_run_is_not_probed_before_it_goes_on(photos):
    loader = loader_of(photos)
    runner = runner_for(
        Guesser(), cfg=dict(train_eval_dataloader=loader), iteration=4, max_iters=7
    )
    go_through(PseudoLabelProbeHook(num_images=1, interval=3), runner)
    assert [step for step, _ in runner.visualizer.scalars] == [6, 7]


def test_photos_shared_among_processes_score_as_one(photos, monkeypatch):
    model = Guesser().eval()
    loader = loader_of(photos)

    def scores_as(rank, world_size, gathered):
        monkeypatch.setattr(monitor_hooks, 'get_dist_info', lambda: (rank, world_size))
        monkeypatch.setattr(monitor_hooks, 'all_gather_object', gathered)
        runner = runner_for(model, cfg=dict(train_eval_dataloader=loader))
        PseudoLabelProbeHook(num_images=5).before_train(runner)
        return runner.visualizer.scalars

    alone = scores_as(0, 1, None)
    states = []

    def gather(state):
        states.append(state)
        return list(states)

    # More processes than photos: the last one has nothing to explain.
    parts = [scores_as(rank, 6, gather) for rank in range(6)]
    assert parts[-1] == alone
    assert parts[0] != alone
    assert sum(len(s) > 0 for s in states) == 6
    assert sorted(model.asked[5:]) == sorted(model.asked[:5])


def test_photos_without_mask_are_left_out_and_none_at_all_refused(photos):
    masks = sorted((photos / 'SegmentationClass').glob('train_*'))
    for mask in masks[1:]:
        mask.unlink()
    loader = loader_of(photos)
    model = Guesser()
    runner = runner_for(model, cfg=dict(train_eval_dataloader=loader))
    PseudoLabelProbeHook().before_train(runner)
    [(_, found)] = runner.visualizer.scalars
    expected = slow_scores(model, DATASETS.build(loader['dataset']), [0])
    assert found == pytest.approx(expected, abs=1e-3)
    masks[0].unlink()
    with pytest.raises(InputError, match=r'no photo .* has a mask.*LoadMask'):
        PseudoLabelProbeHook().before_train(runner)
    # The model is put back all the same.
    assert model.training
    assert model.progress == 0.125


def test_labels_that_are_undecided_everywhere_score_zero(photos):
    model = Guesser()
    plain = model.maps

    def undecided(image_id, size):
        maps = plain(image_id, size)
        return {**maps, 'pseudo_label': torch.full(size, 255)}

    model.maps = undecided
    runner = runner_for(model, cfg=dict(train_eval_dataloader=loader_of(photos)))
    PseudoLabelProbeHook().before_train(runner)
    [(_, found)] = runner.visualizer.scalars
    assert found['probe/pseudo_label_miou'] == found['probe/decided_share'] == 0
    assert found['probe/refined_miou'] > 0


def test_a_run_without_masks_is_told_what_to_do():
    with pytest.raises(InputError, match='train_eval_dataloader'):
        PseudoLabelProbeHook().before_train(runner_for(Guesser()))


@pytest.mark.parametrize(
    ('hook', 'name'),
    [
        (PseudoLabelProbeHook, 'num_images'),
        (PseudoLabelProbeHook, 'interval'),
        (PseudoLabelVisualizationHook, 'num_images'),
        (PseudoLabelVisualizationHook, 'interval'),
    ],
)
def test_numbers_below_one_are_refused(hook, name):
    with pytest.raises(ValueError, match=f'{name} must be at least 1, got 0'):
        hook(**{name: 0})


# ---------------------------------------------------------------------- the pictures
# Its longer side is that of a tile, so that tiles are not scaled.
HEIGHT, WIDTH = 120, TILE_SIDE_PX
PADDED = (128, 256)
QUADRANTS = [[(250, 10, 20), (30, 240, 20)], [(10, 20, 230), (240, 240, 240)]]
PALETTE = [[0, 0, 0], [255, 0, 255], [0, 255, 255]]


def quadrant_photo():
    """(H, W, 3) RGB, another colour in each corner."""
    rows = [np.hstack([np.full((60, 120, 3), c) for c in row]) for row in QUADRANTS]
    return np.vstack(rows).astype(np.uint8)


class Painter(nn.Module):
    """Labels the upper left quadrant 1 and the lower right one 2; the rest as told."""

    def __init__(self, *, reliability=True, bgr_to_rgb=True, undecided=False):
        super().__init__()
        self.data_preprocessor = SegDataPreProcessor(
            mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=bgr_to_rgb, size=PADDED
        )
        self.reliability, self.undecided = reliability, undecided
        self.progress, self.seen = 0.5, []

    def explain(self, inputs, data_samples):
        assert not self.training
        self.seen.append((self.progress, len(inputs)))
        assert tuple(inputs.shape[-2:]) == PADDED
        # A learner sees RGB in [0, 1]: red is in the upper left.
        assert inputs[0, 0, 5, 5] > 0.9
        assert inputs[0, 2, 5, 5] < 0.1
        label = torch.full((len(inputs), *PADDED), 255)
        label[:, :HEIGHT, :WIDTH] = 255 if self.undecided else 0
        if not self.undecided:
            label[:, :60, :120], label[:, 60:HEIGHT, 120:WIDTH] = 1, 2
        trust = torch.zeros(len(inputs), *PADDED)
        trust[:, :, :120] = 1
        return SimpleNamespace(
            pseudo_label=label, reliability=trust if self.reliability else None
        )


def batch_of(count, *, bgr=True):
    photo = quadrant_photo()[..., ::-1] if bgr else quadrant_photo()
    inputs = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    sample = SegDataSample(metainfo=dict(img_shape=(HEIGHT, WIDTH)))
    return {
        'inputs': [inputs.clone() for _ in range(count)],
        'data_samples': [sample.clone() for _ in range(count)],
    }


def drawn(model, batch, *, iteration=5, palette=PALETTE, **options):
    dataset = SimpleNamespace(metainfo=dict(palette=palette))
    runner = runner_for(model, iteration=iteration, max_iters=10, dataset=dataset)
    hook = PseudoLabelVisualizationHook(interval=3, **options)
    hook.after_train_iter(runner, iteration, data_batch=batch)
    return runner.visualizer.images


def tile(sheet, row, column):
    top = CAPTION_PX + GAP_PX + row * (HEIGHT + GAP_PX)
    left = GAP_PX + column * (WIDTH + GAP_PX)
    return sheet[top : top + HEIGHT, left : left + WIDTH].astype(int)


def test_picture_has_a_column_per_title_and_a_row_per_photo():
    for reliability, columns in ((True, 4), (False, 3)):
        model = Painter(reliability=reliability)
        [(name, sheet, step)] = drawn(model, batch_of(3), num_images=2)
        assert (name, step) == ('pseudo_labels', 6)
        assert sheet.dtype == np.uint8
        width = GAP_PX + columns * (WIDTH + GAP_PX)
        height = CAPTION_PX + GAP_PX + 2 * (HEIGHT + GAP_PX)
        assert sheet.shape == (height, width, 3)
        # Each column has a caption above its first tile.
        for column in range(columns):
            left = GAP_PX + column * (WIDTH + GAP_PX)
            assert (sheet[:CAPTION_PX, left : left + 60] < 128).any()
        assert model.seen == [(0.6, 2)]
        assert model.progress == 0.5
        assert model.training


@pytest.mark.parametrize('bgr', [True, False])
def test_photo_is_upright_in_its_own_colours_without_padding(bgr):
    model = Painter(bgr_to_rgb=bgr)
    [(_, sheet, _)] = drawn(model, batch_of(1, bgr=bgr))
    assert np.array_equal(tile(sheet, 0, 0), quadrant_photo())


def test_the_flag_of_upstreams_preprocessor_is_read_too():
    for flag, expected in ((True, [3, 2, 1]), (False, [1, 2, 3])):
        pixels = torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)
        preprocessor = SimpleNamespace(channel_conversion=flag)
        photo = monitor_hooks._upright_photo(pixels, preprocessor)
        assert photo[0, 0].tolist() == expected


def test_labels_reliability_and_band_lie_where_they_belong():
    [(_, sheet, _)] = drawn(Painter(), batch_of(1), band_width=3)
    label, trust, band = (tile(sheet, 0, column) for column in (1, 2, 3))
    # Objects have an outline in the colour of their class where they meet another.
    assert label[30, 119].tolist() == PALETTE[1]
    assert label[59, 60].tolist() == PALETTE[1]
    assert label[60, 180].tolist() == PALETTE[2]
    assert label[90, 120].tolist() == PALETTE[2]
    # Background stays a grey version of the photo: green above, blue below.
    assert np.ptp(label[30, 180]) < 90
    assert label[30, 180, 1] > label[30, 180, 0]
    assert trust[60, 10].mean() > trust[60, 230].mean() + 80
    nearness = -np.abs(band - np.array(BAND_COLOR)).sum(-1)
    near = [(30, x) for x in range(116, 124)] + [(y, 60) for y in range(56, 64)]
    far = [(30, 110), (30, 130), (50, 60), (70, 60), (110, 60), (10, 200)]
    assert min(nearness[p] for p in near) > max(nearness[p] for p in far) + 100


def test_nothing_decided_and_no_palette_still_give_a_picture():
    model = Painter(undecided=True)
    [(_, sheet, _)] = drawn(model, batch_of(1), palette=None, num_images=9)
    label = tile(sheet, 0, 1)
    # Stripes all over: neighbours along a row differ everywhere sooner or later.
    assert (np.ptp(label.reshape(HEIGHT, 4, -1, 3), axis=2) > 40).all()


def test_only_the_first_process_draws_and_only_when_it_is_time(monkeypatch):
    model = Painter()
    assert drawn(model, batch_of(1), iteration=4) == []
    monkeypatch.setattr(monitor_hooks, 'is_main_process', lambda: False)
    assert drawn(model, batch_of(1)) == []
    assert model.seen == []
    monkeypatch.undo()
    assert len(drawn(model, batch_of(1))) == 1


# ----------------------------------------------------------------- with a real model
@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return tiny_run.draw(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize(
    ('make', 'columns'), [(tiny_run.config, 3), (tiny_run.gated_config, 4)]
)
def test_picture_of_a_real_model_and_data_set(make, columns, data_root):
    content = make(data_root)
    init_default_scope('mmseg')
    model = MODELS.build(content['model'])
    dataset = DATASETS.build(tiny_run.eval_loader(content)['dataset'])
    model.data_preprocessor.size = (56, 72)
    batch = pseudo_collate([dataset[3]])
    runner = runner_for(model, iteration=5, dataset=dataset)
    hook = PseudoLabelVisualizationHook(interval=6)
    hook.after_train_iter(runner, 5, data_batch=batch)
    [(_, sheet, _)] = runner.visualizer.images
    assert sheet.shape[1] == GAP_PX + columns * (TILE_SIDE_PX + GAP_PX)
    photo = Image.open(data_root / 'JPEGImages' / 'photo_3.jpg')
    expected = photo.resize((240, 180), Image.Resampling.BILINEAR)
    top = CAPTION_PX + GAP_PX
    found = sheet[top : top + 180, GAP_PX : GAP_PX + 240]
    assert np.array_equal(found, np.asarray(expected))


def test_size_of_the_probes_batch_does_not_matter(data_root):
    content = tiny_run.gated_config(data_root)
    init_default_scope('mmseg')
    model = MODELS.build(content['model'])
    found = []
    for batch_size in (1, 3):
        loader = {**tiny_run.eval_loader(content), 'batch_size': batch_size}
        runner = runner_for(model)
        PseudoLabelProbeHook(dataloader=loader).before_train(runner)
        found += [values for _, values in runner.visualizer.scalars]
    # Rounding may move single pixels over a threshold.
    assert found[0] == pytest.approx(found[1], abs=0.1)


def trained_weights(content, work_dir):
    content['default_hooks']['checkpoint']['interval'] = 100
    config = Config({**content, 'work_dir': str(work_dir), 'log_level': 'WARNING'})
    config.experiment_name = work_dir.name
    runner = Runner.from_cfg(config)
    runner.train()
    steps = runner.message_hub.log_scalars.get('probe/refined_miou')
    pictures = list(work_dir.glob('*/vis_data/vis_image/pseudo_labels_*.png'))
    return runner.model.state_dict(), steps and len(steps.data[0]), len(pictures)


def test_a_watched_training_ends_in_the_same_weights(data_root, tmp_path, monkeypatch):
    def make():
        content = tiny_run.gated_config(data_root)
        # Our sampler and seed hook begin every iteration with a fresh seed, which
        # would hide a number drawn too many.
        content['train_dataloader']['sampler'] = dict(type='InfiniteSampler')
        content['custom_hooks'] = [
            h
            for h in content['custom_hooks']
            if h['type'] != 'mmwsss.IterationSeedHook'
        ]
        content['train_cfg']['max_iters'] = 5
        return content

    plain = WSSSSegmentor.explain

    def drawing(self, *args):
        draws()
        return plain(self, *args)

    monkeypatch.setattr(WSSSSegmentor, 'explain', drawing)
    alone, probes, pictures = trained_weights(make(), tmp_path / 'alone')
    assert (probes, pictures) == (None, 0)
    watched = tiny_run.add_monitors(make(), interval=2)
    found, probes, pictures = trained_weights(watched, tmp_path / 'watched')
    assert (probes, pictures) == (4, 2)
    assert alone.keys() == found.keys()
    for name in alone:
        assert torch.equal(alone[name], found[name]), name
