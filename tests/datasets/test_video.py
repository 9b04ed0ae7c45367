from itertools import islice

import fake_clips
import numpy as np
import pytest

pytest.importorskip('mmengine')

from mmengine.dataset import RepeatDataset

from mmwsss.datasets import (
    ClipStreamSampler,
    SeededIndex,
    VideoClipDataset,
)
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm

PIPELINE = [dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.PackWSSSInputs')]


@pytest.fixture
def root(tmp_path):
    return fake_clips.draw(tmp_path / 'data', num_clips=4, num_frames=9)


def build(root, **options):
    return VideoClipDataset(
        **dict(
            clips='clips.json',
            data_root=str(root),
            data_prefix=dict(img_path='JPEGImages'),
            img_suffix='.png',
            pipeline=PIPELINE,
        )
        | options
    )


def numbers(dataset, clip='c1'):
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [info['frame_idx'] for info in infos if info['clip_id'] == clip]


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (dict(frames='first_mid'), [0, 4]),
        (dict(frames='uniform', num_frames=3), [1, 4, 7]),
        (dict(frames='uniform', num_frames=1), [4]),
        (dict(frames='stride'), list(range(9))),
        (dict(frames='stride', stride=4), [0, 4, 8]),
        (dict(frames='uniform', num_frames=9), list(range(9))),
        (dict(frames='uniform', num_frames=18), sorted([*range(9), *range(9)])),
        (dict(frames='uniform', num_frames=18, test_mode=True), list(range(9))),
        (dict(frames='random', num_frames=3, test_mode=True), [1, 4, 7]),
    ],
)
def test_frames_that_are_chosen(root, options, expected):
    assert numbers(build(root, **options)) == expected


def test_samples_say_which_frame_of_which_clip_they_are(root):
    dataset = build(root, frames='first_mid')
    assert len(dataset) == 8
    packed = dataset[3]
    meta = packed['data_samples'].metainfo
    assert (meta['clip_id'], meta['frame_idx'], meta['num_frames']) == ('c1', 4, 9)
    assert meta['img_id'] == 'c1/4'
    assert packed['data_samples'].image_label.tolist() == [1.0]
    assert dataset[0]['data_samples'].image_label.tolist() == [0.0]
    drawn = fake_clips.frame(4, puff=True)
    assert np.array_equal(packed['inputs'].numpy(), drawn[..., ::-1].transpose(2, 0, 1))
    assert dataset.metainfo['classes'] == ('background', 'smoke')
    info = build(root, data_prefix=dict(img_path='JPEGImages', seg_map_path='Masks'))
    assert info.get_data_info(0)['seg_map_path'] == str(root / 'Masks/c0/0.png')


def test_random_frames_are_a_function_of_the_seed(root):
    dataset = build(root, frames='random', num_frames=3)
    first = [
        dataset[SeededIndex(i, seed=7 + i)]['data_samples'].metainfo['frame_idx']
        for i in range(12)
    ]
    again = [
        dataset[SeededIndex(i, seed=7 + i)]['data_samples'].metainfo['frame_idx']
        for i in reversed(range(12))
    ]
    assert first == again[::-1]
    seen = [set(), set(), set()]
    for seed in range(40):
        for i in range(3):
            sample = dataset[SeededIndex(3 + i, seed)]['data_samples'].metainfo
            assert sample['img_id'] == f'c1/{sample["frame_idx"]}'
            seen[i].add(sample['frame_idx'])
    # One of each third, all of it in the end.
    assert seen == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


def test_frame_folders_and_arrays(tmp_path, root):
    clip = np.stack([fake_clips.frame(t, puff=True) for t in range(6)])
    np.save(root / 'JPEGImages/array.npy', clip)
    fake_clips.write(
        root,
        {
            'folder': {'frames': 'c1', 'labels': ['smoke'], 'group': 'a'},
            'array': {'frames': 'array.npy', 'labels': [], 'group': 'b'},
        },
    )
    dataset = build(root, frames='stride', test_mode=True)
    ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    assert ids == [f'c1/{t}' for t in range(9)] + [f'array/{t:06d}' for t in range(6)]
    for index, expected in ((2, 2), (9 + 5, 5)):
        found = dataset[index]['inputs'].numpy()
        drawn = fake_clips.frame(expected, puff=True)[..., ::-1].transpose(2, 0, 1)
        assert np.array_equal(found, drawn)


def test_tools_see_the_frames_as_photos(root):
    from mmengine.config import Config

    from mmwsss.apis.photos import list_photos

    np.save(root / 'JPEGImages/array.npy', np.zeros((2, 4, 5, 3), np.uint8))
    path = root / 'clips.json'
    clips = {'array': {'frames': 'array.npy', 'labels': ['smoke']}}
    fake_clips.write(root, clips | {'c0': {'frames': ['c0/0'], 'labels': []}})
    config = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='mmwsss.VideoClipDataset',
                    clips=str(path),
                    frames='random',
                    num_frames=2,
                    data_root=str(root),
                    data_prefix=dict(img_path='JPEGImages'),
                    img_suffix='.png',
                )
            )
        )
    )
    found = list_photos(config, split='train')
    ids = [photo.id for photo in found.photos]
    assert ids == ['array/000000', 'array/000001', 'c0/0']
    assert found.photos[1].pixels().shape == (3, 4, 5)
    size = (root / 'JPEGImages/array.npy').stat().st_size
    assert found.photos[1].record(found.class_names) == f'{size} bytes: smoke'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (np.zeros((3, 4, 5, 3)), r'uint8 \(T, H, W, 3\), RGB, got float64'),
        (np.zeros((3, 4, 5), np.uint8), r'got uint8 \(3, 4, 5\)'),
        (np.zeros((0, 4, 5, 3), np.uint8), r'got uint8 \(0, 4, 5, 3\)'),
        (None, 'does not exist'),
        (b'nothing', 'cannot be read as a numpy array'),
        (np.array([{}], dtype=object), 'cannot be read as a numpy array'),
    ],
)
def test_arrays_that_are_no_clips(root, content, message):
    path = root / 'JPEGImages/array.npy'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    fake_clips.write(root, {'a': {'frames': 'array.npy', 'labels': []}})
    with pytest.raises(InputError, match=message):
        build(root)


def test_bad_input_is_found_when_it_is_built(root, tmp_path):
    (root / 'JPEGImages/c2/5.png').unlink()
    with pytest.raises(InputError, match="1 of 9 frames of clip 'c2' are missing"):
        build(root)
    (root / 'some.txt').write_text('c0\nc1\n')
    assert len(build(root, ann_file='some.txt', frames='first_mid')) == 4
    with pytest.raises(InputError, match=r"frames must be .* 'all'"):
        build(root, frames='all')
    with pytest.raises(InputError, match='1 or more, got 0 and 1'):
        build(root, num_frames=0)
    (root / 'none.txt').write_text('')
    with pytest.raises(InputError, match='names no clip'):
        build(root, ann_file='none.txt')
    (root / 'other.txt').write_text('c9\n')
    with pytest.raises(InputError, match="the first is 'c9'"):
        build(root, ann_file='other.txt')
    fake_clips.write(root, {'a': {'frames': 'nowhere', 'labels': []}})
    with pytest.raises(InputError, match="nowhere of clip 'a' does not exist"):
        build(root)


def test_a_camera_of_another_split_is_refused(root):
    for name, ids in (('train', 'c0'), ('bad', 'c1'), ('good', 'c2\nc3')):
        (root / f'{name}.txt').write_text(ids)
    build(root, ann_file='train.txt', apart_from=['good.txt'])
    with pytest.raises(InputError, match=r"'camera 0' .* is in two splits"):
        build(root, ann_file='train.txt', apart_from=['good.txt', 'bad.txt'])


# ----------------------------------------------------------------------------- sampler
def stream(dataset, number, *, rank=0, world=1, skip=0, monkeypatch=None, **options):
    if monkeypatch:
        monkeypatch.setattr(
            'mmwsss.datasets.sampler.get_dist_info', lambda: (rank, world)
        )
    sampler = ClipStreamSampler(dataset, seed=3, **options)
    sampler.skip(skip)
    return [(int(i), i.seed) for i in islice(sampler, number)]


def test_the_stream_keeps_clips_whole(root):
    dataset = build(root, frames='uniform', num_frames=3)
    found = [index for index, _ in stream(dataset, 48)]
    clips = [tuple(found[i : i + 3]) for i in range(0, 48, 3)]
    assert set(clips) == {(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)}
    epochs = [clips[i : i + 4] for i in range(0, 16, 4)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [i for i, _ in stream(dataset, 12, shuffle=False)] == list(range(12))
    assert len({seed for _, seed in stream(dataset, 48)}) == 48
    assert len(ClipStreamSampler(dataset, seed=0)) == 12


def test_the_stream_is_the_same_for_ranks_and_after_a_stop(root, monkeypatch):
    dataset = build(root, frames='uniform', num_frames=3)
    whole = stream(dataset, 60)
    assert stream(dataset, 50, skip=10) == whole[10:]
    parts = [
        stream(dataset, 30, rank=r, world=2, monkeypatch=monkeypatch) for r in (0, 1)
    ]
    # Clip by clip in turn.
    joined = [parts[n % 2][n // 2 * 3 + t] for n in range(20) for t in range(3)]
    assert joined == whole
    later = stream(dataset, 23, rank=1, world=2, skip=7, monkeypatch=monkeypatch)
    assert later == parts[1][7:]


def test_the_sampler_says_what_it_needs(root):
    dataset = build(root, frames='uniform', num_frames=3)
    with pytest.raises(InputError, match='without a wrapper, got RepeatDataset'):
        ClipStreamSampler(RepeatDataset(dataset, 2), seed=0)
    fake_clips.write(
        root,
        {
            'a': {'frames': ['c0/0', 'c0/1'], 'labels': []},
            'b': {'frames': ['c1/0'], 'labels': []},
        },
    )
    with pytest.raises(InputError, match='they have 1 to 2'):
        ClipStreamSampler(build(root, frames='stride'), seed=0)
    assert ClipStreamSampler(build(root), seed=0).frames_per_clip == 8
