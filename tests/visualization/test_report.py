import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmwsss.errors import InputError
from mmwsss.visualization.report import write_report


def table(classes, iou, **extra):
    rows = [
        {'name': n, 'iou': iou, 'precision': 1.0, 'recall': 1.0, 'pixels': 9}
        for n in classes
    ]
    rows[-1]['iou'] = None
    return {'miou': iou, 'accuracy': 80.0, 'images': 7, 'kept': 100.0} | {
        'per_class': rows,
        **extra,
    }


@pytest.fixture
def result_dir(tmp_path):
    classes = ['background', '<b>cat & dog</b>', 'ghost']
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'tile.png')
    numbers = [
        {'key': f'{split}/{key}', 'split': split, 'title': key, 'policy': 'p; q'}
        | table(classes, value, threshold=0.3)
        for split in ('train', 'val')
        for key, value in (('raw_cams', 31.25), ('refined', 55.5), ('segmentor', 61.75))
    ]
    pictures = [
        {
            'id': name,
            'classes': [classes[1]],
            'iou': {'prediction': value, 'refined': value},
            'tiles': [{'title': 'Photo', 'file': 'tile.png'}],
        }
        for name, value in (('good', 90.0), ('bad', 12.0))
    ]
    metrics = {
        'classes': classes,
        'numbers': numbers,
        'sweeps': {'train': {'thresholds': [0.1, 0.3, 0.5], 'miou': [20, 31, None]}},
        'pictures': {'train': [], 'val': pictures},
        'photos': {'train': 7, 'val': 7},
        'without_mask': {'train': 2, 'val': 0},
        'seconds': {'train': 1.0, 'val': 2.0},
        'run': {
            'config': 'configs/name_of_run.py',
            'checkpoint': 'c.pth',
            'run_dir': str(tmp_path),
            'iteration': 40,
            'seed': None,
            'date': '2026-01-01',
            'device': 'CPU',
            'versions': {'torch': '2'},
        },
    }
    (tmp_path / 'metrics.json').write_text(json.dumps(metrics))
    return tmp_path


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ('src', 'href', 'srcset')]


def test_report_is_one_file_without_network(result_dir):
    page = write_report(result_dir).read_text()
    links = Links()
    links.feed(page)
    assert links.addresses
    assert all(address.startswith('data:') for address in links.addresses)
    assert 'url(' not in page
    assert 'script' not in links.tags
    assert 'prefers-color-scheme: dark' in page
    assert 'width=device-width' in page


def test_report_shows_the_numbers_and_escapes_names(result_dir):
    page = write_report(result_dir).read_text()
    assert 'name_of_run' in page
    assert '61.75' in page
    assert '31.25' in page
    assert '&lt;b&gt;cat &amp; dog&lt;/b&gt;' in page
    assert '<b>cat' not in page
    assert 'not scored: ghost' in page
    assert '2 without a mask' in page


def test_gallery_is_worst_first(result_dir):
    page = write_report(result_dir).read_text()
    assert page.index('bad · mIoU 12.0') < page.index('good · mIoU 90.0')


def test_report_without_val_or_training_log(result_dir):
    metrics = json.loads((result_dir / 'metrics.json').read_text())
    metrics['numbers'] = [n for n in metrics['numbers'] if n['split'] == 'train']
    metrics['photos'].pop('val')
    metrics['pictures'] = {}
    metrics['sweeps'] = {}
    (result_dir / 'metrics.json').write_text(json.dumps(metrics))
    page = write_report(result_dir).read_text()
    assert 'Validation photos' not in page
    assert '<h2>Training</h2>' not in page


def test_report_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r'tools/evaluate\.py CONFIG CHECKPOINT'):
        write_report(tmp_path)


def test_report_names_a_broken_picture(result_dir):
    (result_dir / 'tile.png').write_bytes(b'no picture')
    with pytest.raises(InputError, match=r'tile\.png'):
        write_report(result_dir)
