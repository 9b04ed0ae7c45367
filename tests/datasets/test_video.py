import json
from itertools import islice

import fake_clips
import numpy as np
import pytest

pytest.importorskip('mmengine')

from mmengine.dataset import RepeatDataset

from mmwsss.apis.photo_check import check_photos
from mmwsss.datasets import (
    ClipStreamSampler,
    SeededIndex,
    VideoClipDataset,
    video,
)
from mmwsss.errors import InputError, UnreadablePhoto

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


# ----------------------------------------------------------------------- left out
def cut(path):
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def arrays(root, *names):
    """Clips of four frames, each an array of noise."""
    rng = np.random.default_rng(0)
    clips = {}
    for name in names:
        frames = rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
        np.save(root / f'JPEGImages/{name}.npy', frames)
        clips[f'clip {name}'] = {'frames': f'{name}.npy', 'labels': [], 'group': name}
    return clips


def ids(dataset):
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(video, 'print_log', lambda text, *rest: lines.append(text))
    return lines


@pytest.mark.parametrize('frames', ['first_mid', 'uniform', 'random', 'stride'])
def test_what_is_excluded_is_as_if_it_had_never_been_named(root, said, frames):
    path = root / 'clips.json'
    others = json.loads(path.read_text())['clips']
    clips = {**others, 'gone': {'frames': 'nowhere', 'labels': ['smoke']}}
    clips |= arrays(root, 'whole', 'torn')
    cut(root / 'JPEGImages/torn.npy')
    (root / 'JPEGImages/c2/5.png').unlink()
    fake_clips.write(root, clips)
    (root / 'broken.txt').write_text('clip torn\ngone\nc2/5\nc1/0\nnot there\n')
    (root / 'more.txt').write_text('whole/000001\nc3\n')
    options = dict(frames=frames, num_frames=2, stride=3)
    dataset = build(root, exclude=['broken.txt', f'{root}/more.txt'], **options)
    assert said == [
        f'left out: 2 of 7 clips, which {root}/broken.txt names',
        f'left out: 1 of 5 clips, which {root}/more.txt names',
        f'left out: 2 of 31 frames, which {root}/broken.txt names',
        f'left out: 1 of 29 frames, which {root}/more.txt names',
    ]
    found = [dataset[SeededIndex(i, seed=i)] for i in range(len(dataset))]
    photos = root / 'JPEGImages/whole.npy'
    np.save(photos, np.delete(np.load(photos), 1, axis=0))
    del others['c3']
    for clip, frame in (('c2', 'c2/5'), ('c1', 'c1/0')):
        others[clip]['frames'].remove(frame)
    fake_clips.write(root, others | {'clip whole': clips['clip whole']})
    expected = build(root, **options)
    assert len(found) == len(expected) >= 8
    for index, a in enumerate(found):
        b = expected[SeededIndex(index, seed=index)]
        assert np.array_equal(a['inputs'], b['inputs'])
        for key in ('clip_id', 'frame_idx', 'num_frames'):
            assert a['data_samples'].get(key) == b['data_samples'].get(key)


def test_a_clip_without_frames_is_left_out_and_none_at_all_is_refused(root, said):
    names = [f'c1/{t}' for t in range(9)]
    (root / 'broken.txt').write_text('\n'.join(names))
    found = ids(build(root, exclude='broken.txt', frames='first_mid'))
    assert {name[:2] for name in found} == {'c0', 'c2', 'c3'}
    assert said == [
        f'left out: 9 of 36 frames, which {root}/broken.txt names',
        'left out: 1 of 4 clips (c1), of which no frame is left',
    ]
    (root / 'broken.txt').write_text('\n'.join(['c0', 'c2', 'c3', *names]))
    with pytest.raises(InputError, match=r'broken.txt\) leaves none of 4 clips; take'):
        build(root, exclude='broken.txt')
    with pytest.raises(InputError, match=r'none.txt cannot be read; .*correct exclude'):
        build(root, exclude='none.txt')
    (root / 'broken.txt').write_text('')
    assert ids(build(root, exclude='broken.txt')) == ids(build(root))


def test_cameras_may_be_apart_by_what_is_excluded(root):
    for name, clips in (('train', 'c0\nc2'), ('val', 'c3'), ('out', 'c2')):
        (root / f'{name}.txt').write_text(clips)
    options = dict(ann_file='train.txt', apart_from=['val.txt'])
    with pytest.raises(InputError, match=r"'camera 1' .* is in two splits"):
        build(root, **options)
    assert ids(build(root, exclude='out.txt', frames='first_mid', **options)) == [
        'c0/0',
        'c0/4',
    ]


@pytest.mark.parametrize('frames', ['stride', 'random'])
def test_a_frame_that_cannot_be_read_is_never_swapped(root, frames):
    for t in range(9):
        cut(root / f'JPEGImages/c1/{t}.png')
    dataset = build(root, frames=frames, num_frames=9)
    assert dataset[3]['data_samples'].metainfo['img_id'] == 'c0/3'
    with pytest.raises(UnreadablePhoto) as error:
        dataset[SeededIndex(9 + 3, seed=1)]
    sentence = str(error.value)
    assert f'the photo {root}/JPEGImages/c1/3.png is truncated or damaged' in sentence
    assert f'check photos {root}/JPEGImages --list broken.txt' in sentence
    assert '--exclude broken.txt' in sentence
    # What that command lists is what is left out.
    check_photos(root / 'JPEGImages', workers=1, list_file=root / 'broken.txt')
    dataset = build(root, frames=frames, num_frames=9, exclude='broken.txt')
    assert len(dataset) == 27
    assert all(dataset[i]['data_samples'].clip_id != 'c1' for i in range(27))


def test_a_photo_of_another_folder_keeps_its_own_advice(root):
    dataset = build(root)

    def read_another(info):
        raise UnreadablePhoto('the photo /elsewhere/1.png is damaged; replace it')

    dataset.pipeline = read_another
    with pytest.raises(UnreadablePhoto, match=r'^the photo .* is damaged; replace it$'):
        dataset[0]


def test_arrays_that_cannot_be_read_are_all_named(root):
    names = [f'a{n}' for n in range(12)]
    fake_clips.write(root, arrays(root, *names, 'whole'))
    for name in names:
        cut(root / f'JPEGImages/{name}.npy')
    with pytest.raises(UnreadablePhoto) as error:
        build(root)
    sentence = str(error.value)
    assert sentence.startswith('12 of 13 clips cannot be read: clip a0, clip a1, ')
    assert f'clip a9, ... (the first: the clip {root}/JPEGImages/a0.npy ' in sentence
    assert '--exclude broken.txt' in sentence
    (root / 'some.txt').write_text(''.join(f'clip {name}\n' for name in names[1:]))
    with pytest.raises(UnreadablePhoto, match='into a list') as error:
        build(root, exclude='some.txt')
    assert 'again, or write clip a0, the id of the clip, into a list' in str(
        error.value
    )
    # Tools see a sample of it that they can list and leave out.
    dataset = build(root, exclude='some.txt', test_mode=True, frames='stride')
    assert ids(dataset) == ['a0/000000', *(f'whole/00000{n}' for n in range(4))]
    assert dataset[1]['inputs'].shape == (3, 6, 8)
    with pytest.raises(UnreadablePhoto, match='again, or write clip a0, the id of'):
        dataset[0]
    (root / 'some more.txt').write_text('a0/000000\n')
    dataset = build(root, exclude=['some.txt', 'some more.txt'])
    assert dataset.get_data_info(0)['clip_id'] == 'clip whole'


def test_an_empty_folder_of_frames_is_named_or_excluded(root):
    (root / 'JPEGImages/empty').mkdir()
    clips = {
        'a': {'frames': 'empty', 'labels': []},
        'b': {'frames': 'c1', 'labels': []},
    }
    fake_clips.write(root, clips)
    with pytest.raises(
        InputError, match=r"empty of clip 'a' holds no photo; .*exclude"
    ):
        build(root)
    (root / 'broken.txt').write_text('a\n')
    assert ids(build(root, exclude='broken.txt', frames='first_mid'))[0] == 'c1/0'


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
