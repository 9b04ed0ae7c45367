"""Tags of seven formats; tests/fixtures/tags says the same in all of them.

Structures by: COCO's "Data format" (2014), the VOC 2012 devkit and labelImg, CVAT's
"XML annotation format" 1.1, "Label Studio JSON format of annotated tasks",
X-AnyLabeling's user guide (flags of 3.2, tags of 4.0), Roboflow's multi-label CSV.
"""

import json
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from mmwsss.apis.tags import FORMATS, detect_format, read_class_list, read_tags
from mmwsss.command.convert_tags import FORMATS as COMMAND_FORMATS
from mmwsss.command.convert_tags import command
from mmwsss.datasets import load_image_labels
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
FIXTURES = Path(__file__).resolve().parents[1] / 'fixtures/tags'
EXPECTED = {'in/cat 1': {'cat'}, 'b': {'dog', 'sofa'}, 'empty': set()}
SOURCES = {
    'tags.csv': 'csv',
    'table.csv': 'csv',
    'coco.json': 'coco',
    'voc': 'voc',
    'x_anylabeling': 'x-anylabeling',
    'cvat.xml': 'cvat',
    'label_studio.json': 'label-studio',
}


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 6)).save(path)


@pytest.fixture
def photos(tmp_path):
    for name in ('in/cat 1.jpg', 'b.JPG', 'empty.jpg'):
        photo(tmp_path / 'photos' / name)
    return tmp_path / 'photos'


def as_sets(tags):
    return {image_id: set(names) for image_id, names in tags.labels.items()}


@pytest.mark.parametrize('source', SOURCES)
def test_all_formats_say_the_same(photos, source):
    assert detect_format(FIXTURES / source) == SOURCES[source]
    tags = read_tags(FIXTURES / source, photos=photos)
    assert as_sets(tags) == EXPECTED
    # COCO's order is that of the ids; Roboflow's category 0 is none.
    order = ('cat', 'dog', 'sofa')
    assert tags.classes == order
    assert tags.skipped == 0
    assert any(note.startswith('1 of 3 photos have no tag') for note in tags.notes)


def test_a_folder_per_class(tmp_path):
    for name in ('cat/1.jpg', 'cat/2.jpg', 'big  dog/1.jpg', 'Background/1.png'):
        photo(tmp_path / name)
    # A label file beside the photos is none of the formats.
    (tmp_path / 'image_labels.json').write_text('{"classes": [], "labels": {}}')
    assert detect_format(tmp_path) == 'folders'
    tags = read_tags(tmp_path)
    assert tags.classes == ('big dog', 'cat')
    assert as_sets(tags) == {
        'cat/1': {'cat'},
        'cat/2': {'cat'},
        'big  dog/1': {'big dog'},
        'Background/1': set(),
    }
    photo(tmp_path / 'Cat/3.jpg')
    with pytest.raises(InputError, match=r"'cat', but the folder Cat writes 'Cat'"):
        read_tags(tmp_path)


def test_shapes_count_when_asked(photos):
    for source in ('cvat.xml', 'x_anylabeling', 'label_studio.json'):
        tags = read_tags(FIXTURES / source, photos=photos, shapes=True)
        expected = {**EXPECTED, 'b': {'dog', 'sofa', 'collar'}}
        assert as_sets(tags) == expected, source


def test_a_class_list_decides_order_spelling_and_what_is_left_out(photos):
    tags = read_tags(
        FIXTURES / 'tags.csv', photos=photos, classes=['Sofa', 'Dog', 'cat', 'bird']
    )
    assert tags.classes == ('Sofa', 'Dog', 'cat', 'bird')
    assert tags.labels['b'] == ['Dog', 'Sofa']
    assert any('bird' in note for note in tags.notes)
    words = dict(photos=photos, classes=['cat', 'do'])
    with pytest.raises(InputError, match=r"line 3 .*'dog' \(did you mean 'do'\?\)"):
        read_tags(FIXTURES / 'tags.csv', **words)
    tags = read_tags(FIXTURES / 'tags.csv', **words, drop_other_classes=True)
    assert as_sets(tags) == {'in/cat 1': {'cat'}, 'b': set(), 'empty': set()}
    assert any('2 other classes left out (dog 1x, sofa 1x)' in n for n in tags.notes)
    with pytest.raises(InputError, match='add --classes'):
        read_tags(FIXTURES / 'tags.csv', photos=photos, drop_other_classes=True)


def test_names_of_another_system_are_found(photos, tmp_path):
    photo(photos / unicodedata.normalize('NFD', 'é.jpg'))
    table = tmp_path / 'tags.csv'
    table.write_text(
        'C:\\Users\\me\\in\\cat 1.jpg,cat\nold/b.png,dog\n'
        + unicodedata.normalize('NFC', 'é.jpg')
        + ',\u00e9t\u00e9\nempty,None\n'
    )
    tags = read_tags(table, photos=photos, no_object=['none'])
    assert {'in/cat 1', 'b', 'empty'} < tags.labels.keys()
    assert tags.labels['empty'] == []
    assert tags.classes == ('cat', 'dog', 'été')


def test_same_names_in_different_folders_are_never_mixed_up(photos, tmp_path):
    photo(photos / 'out/cat 1.jpg')
    table = tmp_path / 'tags.csv'
    table.write_text('cat 1.jpg,cat\n')
    with pytest.raises(InputError, match=r'may be in/cat 1 or out/cat 1'):
        read_tags(table, photos=photos)
    table.write_text('x/b.jpg,cat\ny/b.jpg,dog\n')
    with pytest.raises(InputError, match=r"'y/b\.jpg', which would be b like 'x/b\.j"):
        read_tags(table, photos=photos)
    table.write_text('in/cat 1.jpg,cat\nout/cat 1.jpg,dog\n')
    tags = read_tags(table, photos=photos)
    assert as_sets(tags) == {'in/cat 1': {'cat'}, 'out/cat 1': {'dog'}}
    assert tags.skipped == 2


def test_lines_about_the_same_photo_are_joined(photos, tmp_path):
    table = tmp_path / 'tags.csv'
    table.write_text('b.jpg,dog\nb,cat,dog\n')
    assert read_tags(table, photos=photos).labels == {'b': ['dog', 'cat']}


def test_missing_photos_are_named_or_left_out(photos):
    (photos / 'b.JPG').unlink()
    for source in SOURCES:
        with pytest.raises(InputError, match=r'which is not in .*--skip-missing'):
            read_tags(FIXTURES / source, photos=photos)
        tags = read_tags(FIXTURES / source, photos=photos, skip_missing=True)
        assert as_sets(tags) == {'in/cat 1': {'cat'}, 'empty': set()}
        assert tags.skipped == 1
    for name in ('in/cat 1.jpg', 'empty.jpg'):
        (photos / name).unlink()
    photo(photos / 'other.jpg')
    with pytest.raises(InputError, match='has no tagged photo'):
        read_tags(FIXTURES / 'coco.json', photos=photos, skip_missing=True)


def changed(tmp_path, name, *replacements):
    """A fixture with something wrong in it."""
    text = (FIXTURES / name).read_text()
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after, 1)
    (tmp_path / Path(name).name).write_text(text)
    return tmp_path / Path(name).name


BROKEN = {
    'csv tabs': ('tags.csv', [('b.jpg, dog ,sofa', 'b.jpg,dog|sofa')], r"line 3.*'\|'"),
    'csv case': ('tags.csv', [('1.jpg,cat', '1.jpg,Dog')], "line 3.*'dog'.*line 2"),
    'coco cut': ('coco.json', [('"area": 48', '"area')], r'coco\.json cannot be read'),
    'coco id': ('coco.json', [('"category_id": 2', '"category_id": 9')], 'on 1 .* 9'),
    'coco kind': (
        'coco.json',
        [('"category_id": 2', '"category_id": {"": 2}')],
        'on 1 ',
    ),
    'coco twice': ('coco.json', [('"id": 11,', '"id": 10,')], 'gives the id 10 to'),
    'coco again': (
        'coco.json',
        [('"empty.jpg"', '"b.jpg"')],
        r"image 12 .* names the photo 'b\.jpg' again",
    ),
    'coco name': ('coco.json', [('"file_name": "b.jpg",', '')], 'image 2 .* file_name'),
    'coco part': ('coco.json', [('"annotations"', '"anns"')], 'no COCO instances'),
    'voc cut': ('voc/b.xml', [('</annotation>', '')], r'b\.xml is no XML'),
    'voc name': ('voc/b.xml', [('<name>sofa', '<name>')], 'object 2 of .* no name'),
    'voc bomb': (
        'voc/b.xml',
        [('<annotation>', '<!DOCTYPE a [<!ENTITY b "c">]><annotation>')],
        'document type',
    ),
    'cvat type': ('cvat.xml', [('<annotations>', '<!DOCTYPE a><annotations>')], 'type'),
    'cvat cut': ('cvat.xml', [('</annotations>', '')], r'cvat\.xml is no XML'),
    'cvat letters': ('cvat.xml', [('"utf-8"', '"utf-88"')], 'unknown encoding'),
    'cvat label': ('cvat.xml', [('<tag label="dog"', '<tag')], "tag of image 'b.jpg'"),
    'cvat name': ('cvat.xml', [('name="empty.jpg" ', '')], 'image 3 .* no name'),
    'cvat video': ('cvat.xml', [('<image id', '<track/><image id')], 'for images 1.1'),
    'studio min': (
        'label_studio.json',
        [('"data"', '"image"'), ('"project"', '"annotator"')],
        'task 1 .* JSON-MIN',
    ),
    'studio nested': ('label_studio.json', [('["cat"]', '[["pet", "cat"]]')], 'nested'),
    'studio result': ('label_studio.json', [('"result": []', '"r": 1')], 'task 103 of'),
    'studio photos': (
        'label_studio.json',
        [('"image": "/data/u', '"left": "a.png", "right": "/data/u')],
        'task 102 .* names 2 photos',
    ),
    'any flags': ('x_anylabeling/in/cat 1.json', [('true', '"yes"')], '"flags" of'),
    'any tags': (
        'x_anylabeling/b.json',
        [('"dog", "sofa"', '1')],
        '"tags" of .*b.json',
    ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_files_are_one_sentence(photos, tmp_path, case):
    name, replacements, message = BROKEN[case]
    source = changed(tmp_path, name, *replacements)
    if name.startswith('x_anylabeling'):
        (tmp_path / 'one').mkdir()
        source = source.rename(tmp_path / 'one' / source.name).parent
    format_name = SOURCES.get(name, SOURCES.get(name.split('/')[0]))
    with pytest.raises(InputError, match=message) as caught:
        read_tags(source, photos=photos, format_name=format_name)
    assert '\n' not in str(caught.value)


def test_a_category_above_of_another_kind_is_none(photos, tmp_path):
    source = changed(
        tmp_path, 'coco.json', ('"supercategory": "none"', '"supercategory": []')
    )
    assert read_tags(source, photos=photos, format_name='coco').classes


def test_an_encoding_that_nobody_knows_is_no_format(photos, tmp_path):
    source = changed(tmp_path, 'cvat.xml', ('"utf-8"', '"utf-88"'))
    with pytest.raises(InputError, match=source.name):
        read_tags(source, photos=photos)


def test_cvat_as_it_is_downloaded(photos, tmp_path):
    export = tmp_path / 'task.zip'
    with zipfile.ZipFile(export, 'w') as archive:
        archive.write(FIXTURES / 'cvat.xml', 'annotations.xml')
        archive.writestr('images/b.jpg', b'')
    assert as_sets(read_tags(export, photos=photos)) == EXPECTED
    export.write_bytes(export.read_bytes()[:200])
    with pytest.raises(InputError):
        read_tags(export, photos=photos, format_name='cvat')


def test_label_studio_of_several_people_and_controls(photos, tmp_path):
    tasks = json.loads((FIXTURES / 'label_studio.json').read_text())
    source = tmp_path / 'export.json'
    second = json.loads(json.dumps(tasks[0]['annotations'][0]))
    second['result'][0]['value']['choices'] = ['dog']
    tasks[0]['annotations'].append(second)
    tasks[2]['annotations'] = []
    source.write_text(json.dumps(tasks))
    tags = read_tags(source, photos=photos)
    assert as_sets(tags) == {'in/cat 1': {'cat', 'dog'}, 'b': {'dog', 'sofa'}}
    assert any('1 tasks have several annotations' in note for note in tags.notes)
    assert any('1 entries of' in note for note in tags.notes)
    tasks[0]['annotations'][0]['ground_truth'] = True
    tasks[1]['annotations'][0]['result'][0]['from_name'] = 'quality'
    source.write_text(json.dumps(tasks))
    with pytest.raises(InputError, match=r'several Choices \(pets, quality\)'):
        read_tags(source, photos=photos)
    tags = read_tags(source, photos=photos, control='pets')
    assert as_sets(tags) == {'in/cat 1': {'cat'}, 'b': set()}
    with pytest.raises(InputError, match="no Choices 'pet'; those are: pets"):
        read_tags(source, photos=photos, control='pet')


def test_shapes_alone_say_which_option_takes_them(photos, tmp_path):
    cvat = changed(
        tmp_path,
        'cvat.xml',
        *[(f'<tag label="{name}"', f'<box label="{name}"') for name in EXPECTED_NAMES],
        *[('</tag>', '</box>')] * 3,
    )
    with pytest.raises(InputError, match='2 images with shapes; add --shapes'):
        read_tags(cvat, photos=photos)
    assert as_sets(read_tags(cvat, photos=photos, shapes=True))['b'] == {
        'dog',
        'sofa',
        'collar',
    }
    labelme = tmp_path / 'labelme'
    labelme.mkdir()
    content = json.loads((FIXTURES / 'x_anylabeling/b.json').read_text())
    del content['tags'], content['checked']
    (labelme / 'b.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match='1 files with shapes; add --shapes'):
        read_tags(labelme, photos=photos)
    assert read_tags(labelme, photos=photos, shapes=True).classes == ('collar',)


EXPECTED_NAMES = ('cat', 'dog', 'sofa')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('x.json', '{"a": 1}', 'no known format'),
        ('x.json', '[]', 'no known format'),
        ('x.json', '{"classes": [], "labels": {}}', 'image labels already'),
        ('x.xml', '<svg/>', 'no known format'),
        ('x.docx', '', 'no known format'),
    ],
)
def test_unknown_formats_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_tags(tmp_path / name, photos=tmp_path)


def test_a_source_with_two_formats_is_asked_about(tmp_path):
    shutil.copy(FIXTURES / 'voc/b.xml', tmp_path)
    shutil.copy(FIXTURES / 'x_anylabeling/b.json', tmp_path)
    with pytest.raises(InputError, match='voc or x-anylabeling; say which by --format'):
        detect_format(tmp_path)
    with pytest.raises(InputError, match='does not exist'):
        read_tags(tmp_path / 'absent')
    with pytest.raises(InputError, match='their folder by --images'):
        read_tags(FIXTURES / 'coco.json')


def test_the_command_writes_what_the_data_set_reads(photos, tmp_path):
    assert set(COMMAND_FORMATS) == set(FORMATS)
    out = tmp_path / 'labels.json'
    words = [str(FIXTURES / 'cvat.xml'), '--images', str(photos), '--out', str(out)]
    dry = CliRunner().invoke(command, [*words, '--dry-run'])
    assert dry.exit_code == 0
    assert 'dry run: 3 to make' in dry.output
    assert not out.exists()
    done = CliRunner().invoke(command, words)
    assert done.output.splitlines()[-1] == '3 ok, 0 skipped, 0 failed'
    assert load_image_labels(out).classes == ('cat', 'dog', 'sofa')
    again = CliRunner().invoke(command, words)
    assert again.exit_code == 1
    assert re.search('--overwrite', str(again.exception))


def test_what_read_tags_refuses(photos, tmp_path):
    def refused(sentence, source, **options):
        with pytest.raises(InputError, match=sentence):
            read_tags(source, **options)

    table, sorted_photos = FIXTURES / 'tags.csv', tmp_path / 'sorted'
    for name in ('cat/a.jpg', 'dog/b.jpg'):
        photo(sorted_photos / name)
    refused('none.csv does not exist; give a file', tmp_path / 'none.csv')
    refused("'yolo' is no format of tags; those are fold", table, format_name='yolo')
    refused('tags.csv says nothing about where its photos lie; give', table)
    refused('the folder of photos .*none does not', table, photos=tmp_path / 'none')
    refused(
        'leave --images .* out', sorted_photos, photos=photos, format_name='folders'
    )
    # The folder itself, however it is written, is no other one.
    again = sorted_photos / '../sorted'
    tags = read_tags(sorted_photos, photos=again, format_name='folders')
    assert tags.labels == {'cat/a': ['cat'], 'dog/b': ['dog']}


def test_a_list_of_classes_may_begin_with_the_background(tmp_path):
    for text in ('background\ncat\nsofa bed\n', 'cat\nsofa bed\n'):
        (tmp_path / 'classes.txt').write_text(text)
        assert read_class_list(tmp_path / 'classes.txt') == ['cat', 'sofa bed']
