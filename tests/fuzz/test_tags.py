"""Damaged image labels, tags of all formats and annotators' masks."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import check, damaged, fuzzed, json_or_bytes, listing
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmwsss.apis.annotations import ExportOptions, export_masks, import_annotations
from mmwsss.apis.make_pseudo_labels import write_map
from mmwsss.apis.tags import Tags, read_tags
from mmwsss.datasets.image_labels import ImageLabels, load_image_labels

pytestmark = pytest.mark.mm
FIXTURES = Path(__file__).resolve().parents[1] / 'fixtures/tags'
LABELS = b'{"classes": ["cat", "dog"], "labels": {"a": ["cat"], "b": [], "c": ["dog"]}}'


def any_content(content: bytes, suffix: str) -> st.SearchStrategy[bytes]:
    return json_or_bytes(content) if suffix == '.json' else damaged(content)


@fuzzed(300, given(content=json_or_bytes(LABELS), suffix=st.sampled_from(['', '.gz'])))
def test_image_labels(tmp_path_factory, content, suffix):
    path = folder_of(tmp_path_factory) / f'labels.json{suffix}'
    path.write_bytes(content)

    def read():
        found = load_image_labels(path)
        assert isinstance(found, ImageLabels)
        for image_id in found.labels:
            assert found.multi_hot(image_id).shape == (len(found.classes),)

    check(read)


_FOLDERS = {}


def folder_of(factory, name='fuzz') -> Path:
    """One folder for all inputs of a test."""
    if name not in _FOLDERS:
        _FOLDERS[name] = factory.mktemp(name)
    return _FOLDERS[name]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    for name in ('in/cat 1.jpg', 'b.JPG', 'empty.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 6)).save(folder / name)
    return folder


FILES = [p for p in sorted(FIXTURES.rglob('*')) if p.is_file()]


@fuzzed(
    300,
    given(
        file=st.sampled_from(FILES).flatmap(
            lambda p: st.tuples(st.just(p), any_content(p.read_bytes(), p.suffix))
        ),
        shapes=st.booleans(),
    ),
)
def test_tags(photos, tmp_path_factory, file, shapes):
    original, content = file
    folder = folder_of(tmp_path_factory, 'tags')
    shutil.rmtree(folder)
    shutil.copytree(FIXTURES, folder)
    path = folder / original.relative_to(FIXTURES)
    path.write_bytes(content)
    source = (
        path if path.parent == folder else folder / path.relative_to(folder).parts[0]
    )
    before = listing(folder)

    def read():
        found = read_tags(source, photos=photos, shapes=shapes)
        assert isinstance(found, Tags)
        assert set(found.labels) <= {'in/cat 1', 'b', 'empty'}
        assert {n for names in found.labels.values() for n in names} <= {*found.classes}

    check(read)
    assert listing(folder) == before


FORMATS = ('voc', 'coco', 'labelme', 'x-anylabeling', 'cvat', 'label-studio')
CLASSES = ('cat', 'dog')


@pytest.fixture(scope='module')
def exported(photos, tmp_path_factory):
    """What each annotation tool would hold of three masks."""
    root = tmp_path_factory.mktemp('exported')
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 1:6] = 1
    mask[2, 2], mask[4:, 5:], mask[0] = 0, 2, 255
    for name in ('in/cat 1', 'b'):
        write_map(root / 'masks' / f'{name}.png', mask, palette=True)
    for name in FORMATS:
        options = ExportOptions(format_name=name, classes=CLASSES)
        ids = ['in/cat 1', 'b']
        list(export_masks(root / 'masks', root / name, options, photos=photos, ids=ids))
    return root


@fuzzed(250, given(data=st.data(), name=st.sampled_from(FORMATS)))
def test_annotations(exported, photos, tmp_path_factory, data, name):
    top = folder_of(tmp_path_factory, 'annotations')
    shutil.rmtree(top)
    sandbox = top / 'one/two'
    shutil.copytree(exported / name, sandbox / 'source')
    files = [p for p in sorted((sandbox / 'source').rglob('*')) if p.is_file()]
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(any_content(path.read_bytes(), path.suffix)))
    # A file alone is what most tools export.
    source = sandbox / 'source'
    if path.suffix in ('.json', '.xml') and data.draw(st.booleans()):
        source = path
    before, photos_before = listing(source), listing(photos)

    def read():
        found = import_annotations(
            source, sandbox / 'out', format_name=name, classes=CLASSES,
            photos=data.draw(st.sampled_from([photos, None])),
        )  # fmt: skip
        for image_id in found:
            written = sandbox / 'out/SegmentationClass' / f'{image_id}.png'
            values = np.unique(np.asarray(Image.open(written)))
            assert set(values) <= {0, 1, 2, 255}

    check(read)
    assert listing(source) == before
    assert listing(photos) == photos_before
    assert {p.name for p in sandbox.iterdir()} <= {'source', 'out'}
    assert [*top.glob('*'), *top.glob('one/*')] == [top / 'one', sandbox]


@fuzzed(
    60, given(content=damaged((FIXTURES / 'cvat.xml').read_bytes()), cut=st.booleans())
)
def test_packed_cvat(photos, tmp_path_factory, content, cut):
    path = folder_of(tmp_path_factory, 'zip') / 'export.zip'
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('annotations.xml', content)
    packed = stream.getvalue()
    path.write_bytes(packed[: len(content) % len(packed)] if cut else packed)
    check(lambda: read_tags(path, photos=photos))
