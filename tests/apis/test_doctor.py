"""The doctor on a healthy data set, and on the same one with one thing wrong."""

import json
import pickle
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mmengine.config import Config
from PIL import Image

from mmwsss.apis.doctor import installation as doctor_installation
from mmwsss.apis.doctor import photos as doctor_photos
from mmwsss.apis.doctor import run_doctor
from mmwsss.apis.doctor import scan as doctor_scan
from mmwsss.apis.doctor.findings import SEVERITIES, Finding, Report
from mmwsss.apis.doctor.inputs import Split
from mmwsss.apis.doctor.scan import look_at_photo, perceptual_hash
from mmwsss.apis.doctor.similar import MAX_BITS, equal_groups, near_groups
from mmwsss.apis.doctor.tags import tag_findings
from mmwsss.command.doctor import command
from mmwsss.datasets.image_labels import ImageLabels
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
ROOT = Path(__file__).resolve().parents[2]
TAGS = ([], ['a'], ['b'], ['a', 'b'])
TRAIN, VAL = 48, 8
HEIGHT, WIDTH = 48, 64


def picture(seed):
    """A photo unlike any other: 8 x 8 grey and coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(patches).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def mask_of(tags, classes=('a', 'b')):
    """Each class in a stripe of its own, and some void."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[0] = 255
    for name in tags:
        value = classes.index(name) + 1
        mask[5 * value : 5 * value + 5, 5:40] = value
    return mask


class Data:
    """A data set in VOC layout that tests break."""

    def __init__(self, root):
        self.root = root
        self.photos, self.masks = root / 'JPEGImages', root / 'SegmentationClass'
        self.lists = root / 'ImageSets/Segmentation'

    @property
    def content(self):
        return json.loads((self.root / 'image_labels.json').read_text())

    def save(self, content):
        (self.root / 'image_labels.json').write_text(json.dumps(content))

    def photo(self, name):
        return self.photos / f'{name}.png'

    def mask(self, name):
        return self.masks / f'{name}.png'

    def draw(self, name, values):
        Image.fromarray(values.astype(np.uint8)).save(self.mask(name))

    def add(self, name, tags, split, image=None):
        content = self.content
        content['labels'][name] = tags
        self.save(content)
        (image or picture(name.encode()[-1] + 1000)).save(self.photo(name))
        self.draw(name, mask_of(tags))
        with (self.lists / f'{split}.txt').open('a') as stream:
            stream.write(f'{name}\n')

    def tag(self, change):
        """Change the classes and the tags of all photos, and their masks with them."""
        content = self.content
        content['classes'] = ['a', 'b', 'c']
        for name, tags in content['labels'].items():
            content['labels'][name] = change(name, list(tags))
            if content['labels'][name] != tags:
                self.draw(name, mask_of(content['labels'][name], 'abc'))
        self.save(content)


@pytest.fixture(scope='module')
def healthy(tmp_path_factory):
    data = Data(tmp_path_factory.mktemp('doctor') / 'healthy')
    for folder in (data.photos, data.masks, data.lists):
        folder.mkdir(parents=True)
    labels = {}
    for split, number in (('train', TRAIN), ('val', VAL)):
        names = [f'{split}{i:02}' for i in range(number)]
        for i, name in enumerate(names):
            labels[name] = TAGS[i % 4]
            picture(len(labels)).save(data.photo(name))
            data.draw(name, mask_of(labels[name]))
        # VOC's lists of one class have a second column.
        lines = [f'{name}  1\n' if split == 'val' else f'{name}\n' for name in names]
        (data.lists / f'{split}.txt').write_text(''.join(lines))
    data.save({'classes': ['a', 'b'], 'labels': labels})
    return data.root


@pytest.fixture
def data(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / 'data')
    return Data(tmp_path / 'data')


def check(data, **options):
    return run_doctor(folder=data.root, installation=False, **options)


def test_a_healthy_set_has_no_finding(data):
    before = {p: p.read_bytes() for p in data.root.rglob('*') if p.is_file()}
    report = check(data)
    assert report.findings == []
    assert report.facts['photos'] == TRAIN + VAL
    assert report.facts['sizes'].startswith('smallest 64x48')
    assert report.text().endswith('errors: 0, warnings: 0, notes: 0')
    after = {p: p.read_bytes() for p in data.root.rglob('*') if p.is_file()}
    assert after == before


# ----------------------------------------------------------- what can be wrong, and how
def truncated(data):
    data.photo('train03').write_bytes(data.photo('train03').read_bytes()[:-300])


def not_a_photo(data):
    data.photo('train03').write_text('<html>not found</html>')


def blank(data):
    for name in ('train03', 'val03'):  # Nor are they equal to each other.
        Image.new('RGB', (WIDTH, HEIGHT), 'grey').save(data.photo(name))


def rotated(data):
    """Lying on disk, upright by its EXIF entry."""
    lying = Image.open(data.photo('train03')).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(data.photo('train03'), exif=exif)


def rotated_with_lying_mask(data):
    rotated(data)
    data.draw('train03', np.rot90(mask_of(['a', 'b'])))


def rotated_with_other_mask(data):
    rotated(data)
    data.draw('train03', np.vstack([mask_of(['a', 'b']), np.zeros((2, WIDTH))]))


def grey(data):
    Image.open(data.photo('train03')).convert('L').save(data.photo('train03'))


def small(data):
    picture(999).resize((40, 20)).save(data.photo('train00'))
    data.draw('train00', np.zeros((20, 40), np.uint8))


def same_in_val(data):
    data.add('copy', ['a', 'b'], 'val', Image.open(data.photo('train03')))


def nearly_same_in_val(data):
    brighter = np.asarray(Image.open(data.photo('train03'))) * 0.9 + 10
    data.add('copy', ['a', 'b'], 'val', Image.fromarray(brighter.astype(np.uint8)))


def same_with_other_tags(data):
    data.add('copy', ['a'], 'train', Image.open(data.photo('train00')))


def overlap(data):
    with (data.lists / 'val.txt').open('a') as stream:
        stream.write('train03\n')


def overlap_with_broken_mask(data):
    overlap(data)
    data.mask('train03').write_bytes(b'')


def listed_without_photo(data):
    with (data.lists / 'train.txt').open('a') as stream:
        stream.write('absent 1\n')


def listed_twice(data):
    with (data.lists / 'train.txt').open('a') as stream:
        stream.write('train03\n')


def list_of_bytes(data):
    (data.lists / 'val.txt').write_bytes(b'\xff\xfe\xff')


def unlisted(data):
    lines = (data.lists / 'train.txt').read_text().splitlines()
    lines.remove('train00')
    (data.lists / 'train.txt').write_text('\n'.join(lines))


def no_entry(data):
    content = data.content
    del content['labels']['train00']
    data.save(content)


def lonely_entry(data):
    content = data.content
    content['labels']['elsewhere'] = ['a']
    data.save(content)


def unknown_class(data):
    content = data.content
    content['labels']['train00'] = ['unicorn']
    data.save(content)


def no_labels(data):
    (data.root / 'image_labels.json').unlink()


def never(data):
    data.tag(lambda name, tags: tags)


def rare(data):
    data.tag(lambda name, tags: tags + ['c'] * (name in ('train00', 'train02')))


def always(data):
    data.tag(lambda name, tags: [*tags, 'c'] if 'train' in name else tags)


def nearly_always(data):
    data.tag(lambda name, tags: [*tags, 'c'] if name > 'train01' else tags)


def same_pair(data):
    data.tag(lambda name, tags: tags + ['c'] * ('a' in tags))


def implied_pair(data):
    data.tag(lambda name, tags: tags + ['c'] * ('a' in tags and int(name[-2:]) < 24))


def nearly_pair(data):
    other = ('train00', 'train01')
    data.tag(lambda name, tags: tags + ['c'] * (('a' in tags) != (name in other)))


def no_background(data):
    data.tag(lambda name, tags: tags or ['c'])


def no_mask(data):
    data.mask('val03').unlink()


def lonely_mask(data):
    shutil.copy(data.mask('val03'), data.mask('val03_mask'))


def broken_mask(data):
    data.mask('val03').write_bytes(data.mask('val03').read_bytes()[:60])


def colour_mask(data):
    Image.open(data.mask('val03')).convert('RGB').save(data.mask('val03'))


def deep_mask(data):
    Image.fromarray(mask_of(['a', 'b']).astype(np.uint16)).save(data.mask('val03'))


def other_size(data):
    data.draw('val03', np.zeros((HEIGHT, WIDTH + 1), np.uint8) + mask_of(['a'])[:, :1])


def zero_and_255(data):
    for name, tags in data.content['labels'].items():
        data.draw(name, np.uint8(255) * (mask_of(tags) > 0))


def void_object(data):
    data.draw('val03', np.uint8(255) * (mask_of(['a', 'b']) > 0))


def value_too_large(data):
    values = mask_of(['a', 'b'])
    values[0, 0] = 9
    data.draw('val03', values)


def drawn_untagged(data):
    data.draw('val00', mask_of(['b']))


def tagged_undrawn(data):
    data.draw('val03', mask_of(['a']))


def tiny_class(data):
    for name, tags in data.content['labels'].items():
        values = mask_of(set(tags) - {'a'})
        if 'a' in tags:
            values[0, :20] = 1
        data.draw(name, values)


def other_picture(data):
    (data.photos / 'more').mkdir()
    (data.photos / 'more/x.HEIC').write_bytes(b'')


def same_id(data):
    shutil.copy(data.photo('train00'), data.photos / 'train00.jpg')


# how it is broken: ({code: number}, an example); whatever else is found is a mistake.
CASES = {
    truncated: ({'photo-unreadable': 1}, 'train03 ('),
    not_a_photo: ({'photo-unreadable': 1}, 'train03'),
    blank: ({'photo-blank': 2}, 'train03'),
    rotated: ({'photo-rotated': 1}, 'train03'),
    rotated_with_lying_mask: (
        {'photo-rotated': 1, 'mask-lying': 1},
        'train03 (48x64, photo 64x48)',
    ),
    grey: ({'photo-mode': 1}, 'train03 (L)'),
    small: ({'photo-tiny': 1}, 'train00 (40x20)'),
    same_in_val: (
        {'duplicate-across': 1, 'duplicate': 1},
        'copy (val) = train03 (train',
    ),
    nearly_same_in_val: ({'similar-across': 1, 'similar': 1}, 'copy (val) = train03'),
    same_with_other_tags: ({'duplicate-tags': 1, 'duplicate': 1}, 'train00 = copy'),
    overlap: ({'split-overlap': 1}, 'train03'),
    overlap_with_broken_mask: ({'split-overlap': 1, 'mask-unreadable': 1}, 'train03'),
    listed_without_photo: ({'list-photo': 1}, 'absent'),
    listed_twice: ({'list-twice': 1}, 'train03'),
    list_of_bytes: (
        {'list-unreadable': 1, 'photo-unlisted': VAL},
        'val00',
    ),
    unlisted: ({'photo-unlisted': 1}, 'train00'),
    no_entry: ({'entry-missing': 1}, 'train00'),
    lonely_entry: ({'entry-lonely': 1}, 'elsewhere'),
    unknown_class: ({'labels-unreadable': 1}, ''),
    no_labels: ({'labels-none': 1}, ''),
    never: ({'class-never': 1}, 'c (0 photos)'),
    rare: ({'class-rare': 1}, 'c (2 photos)'),
    always: ({'class-always': 1, 'no-background-photo': TRAIN}, 'c (48 photos)'),
    nearly_always: ({'class-nearly-always': 1}, 'c (46 photos)'),
    same_pair: ({'pair-same': 1}, 'a and c (24 photos)'),
    implied_pair: ({'pair-implied': 1}, 'c with a (12 of 12, a alone in 12)'),
    nearly_pair: ({'pair-nearly': 1}, 'a with c (23 of 24)'),
    no_background: ({'no-background-photo': TRAIN}, ''),
    no_mask: ({'mask-missing': 1}, 'val03'),
    lonely_mask: ({'mask-lonely': 1}, 'val03_mask.png'),
    broken_mask: ({'mask-unreadable': 1}, 'val03'),
    colour_mask: ({'mask-colour': 1}, 'val03'),
    deep_mask: ({'mask-deep': 1}, 'val03'),
    other_size: ({'mask-size': 1, 'mask-0-255': 1}, 'val03 (65x48, photo 64x48)'),
    rotated_with_other_mask: ({'photo-rotated': 1, 'mask-size': 1}, 'train03 (64x50'),
    zero_and_255: ({'mask-0-255': 42}, 'train01'),
    void_object: ({'mask-0-255': 1}, 'val03'),
    value_too_large: ({'mask-value': 1}, 'val03 (value 9)'),
    drawn_untagged: ({'tag-missing': 1}, 'val00 (b)'),
    tagged_undrawn: ({'tag-undrawn': 1}, 'val03 (b)'),
    tiny_class: ({'class-tiny': 1}, 'a (0.65 %)'),
    other_picture: ({'photo-suffix': 1}, 'more/x.HEIC'),
}


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
def test_one_broken_thing_is_one_finding(data, case):
    case(data)
    report = check(data)
    expected, example = CASES[case]
    assert {f.code: f.count for f in report.findings} == expected
    shown = [text for f in report.findings for text in f.examples]
    assert not example or any(text.startswith(example) for text in shown), shown
    for finding in report.findings:
        assert finding.meaning
        assert finding.advice
        assert finding.severity in SEVERITIES
        assert '{n}' not in finding.what


def test_severities_say_what_stops_training_or_spoils_scores():
    """The same code may be grave or not: masks in 0 and 255, or one void object."""
    finding = dict(code='x', what='w', meaning='m', advice='a')
    report = Report()
    for severity in ('note', 'error', 'warning', 'error'):
        report.add([Finding(severity=severity, **finding)])
    assert [f.severity for f in report.findings] == [
        'error',
        'error',
        'warning',
        'note',
    ]
    assert report.text().endswith('errors: 2, warnings: 1, notes: 1')


def test_grave_and_harmless_cases_of_one_code(data):
    void_object(data)
    assert [f.severity for f in check(data).findings] == ['note']
    zero_and_255(data)
    assert [f.severity for f in check(data).findings] == ['error']


def test_a_class_of_all_few_photos_is_not_called_rare():
    labels = ImageLabels(('a', 'b'), {'1': (0,), '2': (0, 1), '3': (0,)})
    photos = {name: name for name in '123'}
    split = Split(name='train', photos=photos, found=photos, labels=labels)
    found = {f.code: f.examples for f in tag_findings([split])}
    assert found['class-always'] == ('a (3 photos)',)
    assert found['class-rare'] == ('b (1 photos)',)


def test_photos_of_a_folder_without_lists_are_one_split(data):
    shutil.rmtree(data.lists)
    shutil.rmtree(data.masks)
    assert check(data).findings == []
    same_id(data)
    report = check(data)
    assert 'photo-names' in {f.code for f in report.findings}
    shutil.rmtree(data.photos)
    data.photos.mkdir()
    assert 'photos-none' in {f.code for f in check(data).findings}
    for name in ('image_labels', 'masks'):
        with pytest.raises(InputError, match=r'absent does not exist'):
            check(data, **{name: data.root / 'absent'})


def test_crops_and_large_photos(data, monkeypatch):
    (finding,) = check(data, crop=(60, 60)).findings
    assert finding.code == 'photo-under-crop'
    assert finding.count == TRAIN
    assert check(data, crop=(HEIGHT, WIDTH)).findings == []
    monkeypatch.setattr(doctor_photos, 'LARGEST_PIXELS', WIDTH * HEIGHT - 1)
    (finding,) = check(data).findings
    assert finding.code == 'photo-large'
    assert finding.count == TRAIN + VAL


def test_fast_opens_nothing(data):
    truncated(data)
    colour_mask(data)
    assert check(data, open_photos=False).findings == []
    assert check(data).number('error') == 2


def test_facts_come_back_from_another_process(data, monkeypatch):
    truncated(data)
    data.photo('val07').write_bytes(b'')
    here = check(data).content()
    calls = []

    def run_like_processes(build, shares, *, jobs, progress):
        worker = build(0)

        def done():
            # In any order, and as copies.
            for share in reversed(shares):
                worker(copied := pickle.loads(pickle.dumps(share)))
                yield pickle.loads(pickle.dumps(copied))

        calls.append(jobs)
        assert list(progress(done(), len(shares)))

    monkeypatch.setattr(doctor_scan, 'run_jobs', run_like_processes)
    assert check(data, jobs=3).content() == here
    assert calls == [3]


# ----------------------------------------------------------------------- similar photos
def slow_near_groups(hashes, thumbs):
    """All pairs, one after the other."""
    groups = [{i} for i in range(len(hashes))]
    for a, b in combinations(range(len(hashes)), 2):
        bits = sum(
            bin(int(x) ^ int(y)).count('1')
            for x, y in zip(*hashes[[a, b]], strict=True)
        )
        alike = np.corrcoef(thumbs[a].astype(float), thumbs[b])[0, 1] >= 0.95
        if bits <= MAX_BITS and alike and groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for member in groups[b]:
                groups[member] = groups[a]
    unique = {tuple(sorted(group)) for group in groups}
    return sorted(group for group in unique if len(group) > 1)


def test_near_photos_are_those_of_comparing_all_pairs():
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (150, 16), np.uint8)
    thumbs = generator.integers(0, 256, (150, 256), np.uint8)
    for copy, source in zip(
        range(100, 150), generator.integers(0, 40, 50), strict=True
    ):
        hashes[copy], thumbs[copy] = hashes[source], thumbs[source]
        # Up to 8 bits: some are too far apart.
        for bit in generator.choice(128, generator.integers(0, 9), replace=False):
            hashes[copy, bit // 8] ^= np.uint8(1 << (bit % 8))
        if copy % 7 == 0:  # The hash alone does not decide.
            thumbs[copy] = generator.integers(0, 256, 256, np.uint8)
    found = sorted(tuple(group.tolist()) for group in near_groups(hashes, thumbs))
    assert found == slow_near_groups(hashes, thumbs)
    assert len(found) > 10


def test_six_bits_are_found_wherever_they_are():
    generator = np.random.default_rng(0)
    thumbs = np.repeat(generator.integers(0, 256, (1, 256), np.uint8), 2, axis=0)
    for pieces in combinations(range(8), MAX_BITS):
        hashes = np.repeat(generator.integers(0, 256, (1, 16), np.uint8), 2, axis=0)
        for piece in pieces:
            hashes[1, 2 * piece + int(generator.integers(2))] ^= np.uint8(16)
        assert len(near_groups(hashes, thumbs)) == 1, pieces


def test_a_fixed_camera_is_one_group_without_all_pairs():
    generator = np.random.default_rng(0)
    number = 3000
    hashes = np.repeat(generator.integers(0, 256, (1, 16), np.uint8), number, axis=0)
    hashes[np.arange(number), generator.integers(0, 16, number)] ^= 1
    thumbs = np.repeat(generator.integers(0, 256, (1, 256), np.uint8), number, axis=0)
    (group,) = near_groups(hashes, thumbs)
    assert len(group) == number
    for few in (0, 1):
        assert near_groups(hashes[:few], thumbs[:few]) == []


def test_equal_groups_by_a_dictionary():
    rows = np.random.default_rng(0).integers(0, 2, (40, 4), np.uint8)
    places = {}
    for i, row in enumerate(rows.tolist()):
        places.setdefault(tuple(row), []).append(i)
    expected = sorted(p for p in places.values() if len(p) > 1)
    assert sorted(g.tolist() for g in equal_groups(rows)) == expected
    assert equal_groups(rows[:0]) == []


def test_the_hash_survives_saving_and_scaling_and_tells_photos_apart(tmp_path):
    photos = [picture(seed).resize((320, 240)) for seed in range(6)]
    photos[0].save(tmp_path / 'a.png')
    photos[0].resize((200, 150)).save(tmp_path / 'b.jpg', quality=70)
    first, second = (look_at_photo(str(tmp_path / n)) for n in ('a.png', 'b.jpg'))

    def bits(one, other):
        return sum(bin(a ^ b).count('1') for a, b in zip(one, other, strict=True))

    assert first.digest != second.digest
    assert bits(first.bits, second.bits) <= MAX_BITS
    hashes = [perceptual_hash(np.asarray(photo.convert('L'))) for photo in photos]
    assert min(bits(a, b) for a, b in combinations(hashes, 2)) > 3 * MAX_BITS


# ------------------------------------------------------------------ configs and machine
def config_of(data, **changes):
    def loader(split):
        return dict(
            num_workers=1,
            dataset=dict(
                type='RepeatDataset',
                dataset=dict(
                    type='mmwsss.ImageLabelDataset',
                    data_root=str(data.root),
                    image_labels='image_labels.json',
                    ann_file=f'ImageSets/Segmentation/{split}.txt',
                    img_suffix='.png',
                    data_prefix=dict(
                        img_path='JPEGImages', seg_map_path='SegmentationClass'
                    ),
                    pipeline=[
                        dict(type='mmwsss.LoadPhoto'),
                        dict(type='mmwsss.RandomCropWithBox', crop_size=(40, 60)),
                    ]
                    + [dict(type='mmwsss.LoadMask')] * (split == 'val'),
                ),
            ),
        )

    content = dict(
        train_dataloader=loader('train'),
        val_dataloader=loader('val'),
        test_dataloader=loader('val'),
    )
    return Config({**content, **changes}).to_dict()


def config_codes(config, **options):
    report = run_doctor(config=config, installation=False, **options)
    codes = {f.code: f.count for f in report.findings}
    assert len(codes) == len(report.findings)
    return codes


def test_a_config_names_the_same_data(data):
    config = config_of(data)
    assert config_codes(config) == {}
    leaf = config['train_dataloader']['dataset']['dataset']
    leaf['pipeline'][1]['crop_size'] = 60
    assert config_codes(config) == {'photo-under-crop': TRAIN}
    leaf['pipeline'].insert(1, dict(type='RandomResize', scale=(90, 90)))
    assert config_codes(config) == {}
    no_entry(data)
    assert config_codes(config) == {'entry-missing': 1}
    leaf['skip_unlabelled'] = True
    report = run_doctor(config=config, installation=False)
    assert [f.severity for f in report.findings] == ['note']
    shutil.rmtree(data.masks)
    assert config_codes(config) == {
        'entry-missing': 1,
        'mask-folder': 1,
        'mask-missing': VAL,
    }
    leaf['data_root'] = 'absent'
    assert 'folder-missing' in config_codes(config)
    del leaf['data_prefix']['img_path']
    assert 'dataset-unknown' in config_codes(config)
    with pytest.raises(InputError, match='not both'):
        run_doctor(config=config, folder=data.root)


def test_weights_and_workers_of_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_installation.torch.hub, 'get_dir', lambda: tmp_path)
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)
    clip = dict(type='mmwsss.FrozenCLIP', model='ViT-B/16')
    config = dict(
        train_dataloader=dict(num_workers=10_000),
        model=dict(
            type='x',
            parts=[
                dict(clip, weights='openai'),
                dict(clip, weights='openaj'),
                dict(type='a.B', weights='https://x.example/net.pth'),
                dict(type='a.B', weights=str(tmp_path / 'net.pth')),
                dict(type='a.B', weights=None),
                dict(type='a.B', weights=(0.2, 0.8)),
                dict(type='mmwsss.FrozenDINOv2', weights='download'),
            ],
        ),
    )
    findings = doctor_installation.installation_findings(config, folder=tmp_path)
    found = [(f.code, f.severity) for f in findings if 'weights' in f.code]
    assert sorted(found) == [
        ('weights-missing', 'error'),
        ('weights-missing', 'error'),
        ('weights-to-download', 'note'),
        ('weights-to-download', 'note'),
        ('weights-to-download', 'note'),
    ]
    assert any('model.parts[1].weights' in f.what for f in findings)
    assert 'workers' in {f.code for f in findings}
    for path in (
        'hub/models--timm--vit_base_patch16_clip_224.openai/snapshots/1/a.bin',
        'checkpoints/net.pth',
        'checkpoints/dinov2_vits14_pretrain.pth',
        'net.pth',
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b'')
    findings = doctor_installation.installation_findings(config, folder=tmp_path)
    assert [f.code for f in findings if 'weights' in f.code] == ['weights-missing']


def test_packages_threads_and_disk(tmp_path, monkeypatch):
    versions = {
        'onedl-mmengine': '0.10.12',
        'mmengine': '0.10.7',
        'mmcv-lite': '2.2.0',
        'mmsegmentation': '1.2.2',
        'setuptools': '82.0',
    }
    monkeypatch.setattr(
        doctor_installation, '_version', lambda name: versions.get(name, '')
    )
    monkeypatch.setattr(doctor_installation.torch, 'get_num_threads', lambda: 10_000)
    usage = type('Usage', (), {'free': 1 << 20, 'total': 1 << 20})
    monkeypatch.setattr(doctor_installation.shutil, 'disk_usage', lambda path: usage)
    monkeypatch.setattr(
        doctor_installation.importlib.util, 'find_spec', lambda name: None
    )
    config = dict(train_dataloader=dict(num_workers=1))
    found = {
        f.code: f
        for f in doctor_installation.installation_findings(config, folder=tmp_path)
    }
    expected = {
        'two-stacks': 'error',
        'package-clash': 'error',
        'threads': 'warning',
        'disk': 'error',
        'shared-memory': 'warning',
        'pydensecrf': 'note',
    }
    assert {code: found[code].severity for code in expected} == expected
    assert found['package-clash'].count == 3
    config['refiners'] = [dict(type='mmwsss.DenseCRF')]
    findings = doctor_installation.installation_findings(config, folder=tmp_path)
    assert {f.severity for f in findings if f.code == 'pydensecrf'} == {'error'}

    def broken(name):
        raise ImportError('mmwsss supports mmcv <2.2')

    monkeypatch.setattr(doctor_installation.importlib, 'import_module', broken)
    findings = doctor_installation.installation_findings(folder=tmp_path)
    (finding,) = [f for f in findings if f.code == 'packages']
    assert 'mmcv <2.2' in finding.what


# -------------------------------------------------------------------------- the command
def test_the_command_prints_writes_and_exits(data, tmp_path):
    words = [str(data.root), '--only-data', '--json', str(tmp_path / 'doctor.json')]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    counted = f'{TRAIN + VAL} ok, 0 skipped, 0 failed\n'
    assert done.stdout.endswith(f'errors: 0, warnings: 0, notes: 0\n{counted}')
    truncated(data)
    rare(data)
    assert '--overwrite' in str(CliRunner().invoke(command, words).exception)
    words.append('--overwrite')
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 1
    assert re.search(r'^ERROR .*\[photo-unreadable\]$', done.stdout, re.M | re.S)
    content = json.loads((tmp_path / 'doctor.json').read_text())
    assert content['counts'] == {'error': 1, 'warning': 1, 'note': 0}
    assert content['findings'][0]['code'] == 'photo-unreadable'
    one_list = f'train={data.lists / "val.txt"}'
    done = CliRunner().invoke(command, [*words, '--split', one_list, '--fast'])
    assert f'train {VAL}' in done.stdout
    for bad in ('train', 'train=', '=x'):
        done = CliRunner().invoke(command, [*words, '--split', bad])
        assert 'NAME=LIST' in str(done.exception)


def test_the_command_reads_configs_by_name(tmp_path):
    words = ['--config', 'clipdino_refine_synth', '--data', str(tmp_path), '--fast']
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 1
    assert '[folder-missing]' in done.stdout
    assert 'torch' in done.stdout
    assert '[weights' not in done.stdout
    with pytest.raises(InputError, match='need a --config'):
        CliRunner().invoke(command, words[2:], catch_exceptions=False)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        # What the README of the photos says: two photos are in it twice, horse is in
        # 3 train photos; no body without a face where faces are.
        ('msrc', {'class-rare': 1, 'pair-implied': 1, 'duplicate': 2}),
        # Time lapses of fixed cameras, each in one split.
        ('smoke', {'similar': 3}),
    ],
)
def test_real_photos(name, expected):
    folder = ROOT.parent / 'shared/data' / name
    if not folder.is_dir():
        pytest.skip('the photos of ../shared/data are not here')
    report = run_doctor(folder=folder, installation=False)
    assert {f.code: f.count for f in report.findings} == expected
    shown = [text for f in report.findings for text in f.examples]
    if name == 'msrc':
        assert {'1_26_s = 9_10_s', '1_27_s = 9_15_s', 'horse (3 photos)'} < set(shown)
