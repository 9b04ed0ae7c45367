import json

import fake_clips
import numpy as np
import pytest

pytest.importorskip('mmengine')

import cv2

from mmwsss.datasets import check_apart, clips, extract_frames, load_clips, split_clips
from mmwsss.datasets.clips import read_clip_ids
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


def cameras(folder, sizes):
    """A list of clips; so many for each camera."""
    clips = {
        f'{camera}_{n}': {'frames': [f'{camera}/{n}/0'], 'labels': [], 'group': camera}
        for camera, size in sizes.items()
        for n in range(size)
    }
    return load_clips(fake_clips.write(folder, clips))


def test_the_list_is_read(tmp_path):
    path = fake_clips.write(
        tmp_path,
        {
            'a': {'frames': ['x/1', 'x/0'], 'labels': ['steam', 'smoke'], 'group': 'n'},
            'b': {'frames': 'folder/', 'labels': []},
            'c': {'frames': 'clip.npy', 'labels': ['smoke'], 'group': 'n'},
        },
        classes=('smoke', 'steam'),
    )
    clips = load_clips(path)
    assert clips.classes == ('smoke', 'steam')
    assert clips.clips['a'].frames == ('x/1', 'x/0')
    assert [c.classes for c in clips.clips.values()] == [(0, 1), (), (0,)]
    assert [c.group for c in clips.clips.values()] == ['n', 'b', 'n']
    ids = ['clip/000010', 'folder/b', 'x/0', 'clip/000002', 'folder/a', 'x/1']
    assert clips.in_order(ids) == {
        'a': ['x/1', 'x/0'],
        'b': ['folder/a', 'folder/b'],
        'c': ['clip/000002', 'clip/000010'],
    }
    # In the order of the clip, not of the names.
    assert clips.in_order(['x/0', 'x/1'])['a'] == ['x/1', 'x/0']
    with pytest.raises(InputError, match="image 'x/2' is no frame of any clip"):
        clips.in_order(['x/1', 'x/2'])


GOOD = {'frames': ['a/0'], 'labels': ['smoke'], 'group': 'n'}


@pytest.mark.parametrize(
    ('clips', 'message'),
    [
        ({}, 'must name one clip or more'),
        ({'a': ['a/0']}, "clip 'a' in .* must hold frames, labels and group"),
        ({'a': GOOD | {'label': 1}}, 'and nothing else'),
        ({'a': {'frames': ['x']}}, "clip 'a' in .* must hold frames"),
        ({'a': GOOD | {'labels': ['fog']}}, "clip 'a' in .* unknown class 'fog'"),
        ({'a': GOOD | {'labels': 'smoke'}}, 'must be a list of class names'),
        ({'a': GOOD | {'frames': []}}, 'must be image ids in order'),
        ({'a': GOOD | {'frames': [1]}}, 'must be image ids in order'),
        ({'a': GOOD | {'group': 3}}, 'must be a text, got 3'),
        ({'a': GOOD, 'b': GOOD}, "'a/0' is twice .* clips 'a' and 'b'"),
        ({'a': GOOD | {'frames': ['x', 'x']}}, "'x' is twice"),
        (
            {'a': GOOD | {'frames': 'v/a.MP4'}},
            r"video file v/a.MP4.*extract_frames\('v/a.MP4', 'v/a'\).*ffmpeg -i",
        ),
    ],
)
def test_malformed_lists_are_one_sentence(tmp_path, clips, message):
    path = fake_clips.write(tmp_path, clips)
    with pytest.raises(InputError, match=message) as caught:
        load_clips(path)
    assert '\n' not in str(caught.value)


def test_foreign_files_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        load_clips(tmp_path / 'none.json')
    path = tmp_path / 'clips.json'
    path.write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r'must hold {"classes"'):
        load_clips(path)
    with pytest.raises(InputError, match='names background'):
        load_clips(fake_clips.write(tmp_path, {'a': GOOD}, classes=['background']))


# ------------------------------------------------------------------------------ splits
@pytest.mark.parametrize('seed', range(5))
def test_no_camera_is_in_two_splits_and_shares_are_near(tmp_path, seed):
    sizes = {f'camera {n}': 3 + n for n in range(12)}
    clips = cameras(tmp_path, sizes)
    shares = {'train': 0.6, 'val': 0.2, 'test': 0.2}
    splits = split_clips(clips, shares, seed=seed)
    assert sorted(i for ids in splits.values() for i in ids) == sorted(clips.clips)
    groups = {n: {clips.clips[i].group for i in ids} for n, ids in splits.items()}
    assert sum(map(len, groups.values())) == 12
    for name, share in shares.items():
        assert abs(len(splits[name]) / len(clips.clips) - share) < 0.08
    check_apart(clips, splits)
    assert split_clips(clips, shares, seed=seed) == splits


def test_seeds_matter_and_no_split_is_empty(tmp_path):
    clips = cameras(tmp_path, dict.fromkeys('abcdefgh', 2))
    shares = {'train': 0.5, 'val': 0.5}
    found = {tuple(split_clips(clips, shares, seed=s)['val']) for s in range(6)}
    assert len(found) > 3
    # One camera has nearly all clips, still each split gets one.
    clips = cameras(tmp_path, {'a': 30, 'b': 1, 'c': 1})
    splits = split_clips(clips, {'train': 0.9, 'val': 0.05, 'test': 0.05})
    assert sorted(map(len, splits.values())) == [1, 1, 30]
    with pytest.raises(InputError, match='3 groups, which cannot be split into 4'):
        split_clips(clips, dict.fromkeys('wxyz', 0.25))
    with pytest.raises(InputError, match='sum to 1'):
        split_clips(clips, {'train': 0.9, 'val': 0.2})


def test_a_camera_in_two_splits_is_refused(tmp_path):
    clips = cameras(tmp_path, {'a': 2, 'b': 1})
    check_apart(clips, {'train': ['a_0', 'a_1'], 'val': ['b_0']})
    with pytest.raises(
        InputError, match=r"group 'a' .* 'a_0' in train and 'a_1' in val"
    ):
        check_apart(clips, {'train': ['a_0'], 'val': ['b_0', 'a_1']})
    with pytest.raises(InputError, match="the first is 'x'"):
        check_apart(clips, {'train': ['a_0', 'x']})
    with pytest.raises(InputError, match='cannot be read; it should hold one clip id'):
        read_clip_ids(tmp_path / 'none.txt')


# ------------------------------------------------------------------------- video files
def test_frames_of_a_video_file(tmp_path):
    path = tmp_path / 'a.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (32, 24))
    for number in range(7):
        image = np.full((24, 32, 3), (30 * number, 10, 200), np.uint8)
        writer.write(image)
    writer.release()
    assert extract_frames(path, tmp_path / 'all') == 7
    assert extract_frames(path, tmp_path / 'some', every=3) == 3
    names = sorted(p.name for p in (tmp_path / 'some').iterdir())
    assert names == ['000000.jpg', '000001.jpg', '000002.jpg']
    for n, number in enumerate((0, 3, 6)):
        image = cv2.imread(str(tmp_path / f'some/{n:06d}.jpg'))
        assert abs(image[..., 0].mean() - 30 * number) < 8
        assert abs(image[..., 2].mean() - 200) < 8
    with pytest.raises(InputError, match='is not empty'):
        extract_frames(path, tmp_path / 'all')
    with pytest.raises(InputError, match='is no video that OpenCV can read'):
        extract_frames(tmp_path / 'none.mp4', tmp_path / 'new')
    with pytest.raises(InputError, match='every must be 1 or more, got 0'):
        extract_frames(path, tmp_path / 'new', every=0)
    assert not (tmp_path / 'new').exists()


def test_a_truncated_video_says_how_much_of_it_is_left(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(clips, 'print_log', lambda text, *rest: said.append(text))
    path = tmp_path / 'a.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (32, 24))
    rng = np.random.default_rng(0)
    for _ in range(20):
        writer.write(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    writer.release()
    assert extract_frames(path, tmp_path / 'whole') == 20
    assert said == []
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    written = extract_frames(path, tmp_path / 'half')
    assert 0 < written < 20
    for n in range(written):
        whole = (tmp_path / f'whole/{n:06d}.jpg').read_bytes()
        assert (tmp_path / f'half/{n:06d}.jpg').read_bytes() == whole
    assert said[0].startswith(
        f'left out: {20 - written} of 20 frames that {path} should'
    )
    path.write_bytes(content[:300])
    with pytest.raises(InputError, match=r'no video that|no frame that'):
        extract_frames(path, tmp_path / 'none')


def test_a_frame_that_cannot_be_decoded_is_left_out_and_counted(tmp_path, monkeypatch):
    class Capture:
        number = -1

        def __init__(self, path):
            self.path = path

        def isOpened(self):
            return True

        def grab(self):
            self.number += 1
            return self.number < 6

        def retrieve(self):
            image = np.full((4, 4, 3), 40 * self.number, np.uint8)
            return (False, None) if self.number in (1, 4) else (True, image)

        def get(self, what):
            return -1.0  # as of a stream, which has no such number

        def release(self):
            pass

    said = []
    monkeypatch.setattr(clips, 'print_log', lambda text, *rest: said.append(text))
    monkeypatch.setattr(cv2, 'VideoCapture', Capture)
    assert extract_frames('a.avi', tmp_path / 'all') == 4
    values = [cv2.imread(str(p)).mean() for p in sorted((tmp_path / 'all').iterdir())]
    assert values == [0, 80, 120, 200]
    assert said[0].startswith('left out: 2 of 6 frames')
    monkeypatch.setattr(Capture, 'retrieve', lambda self: (False, None))
    with pytest.raises(InputError, match='holds no frame that OpenCV can read'):
        extract_frames('a.avi', tmp_path / 'none')
