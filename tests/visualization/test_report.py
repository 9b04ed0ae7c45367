import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote, urlencode

import numpy as np
import pytest
from PIL import Image

from mmwsss.errors import InputError
from mmwsss.visualization.report import write_report

CLASSES = ['background', '<b>cat & dog</b>', 'ghost', 'horse']
PHOTO = 'a "quoted" <i>photo</i> of Ann\'s'
STEPS = ('photo', 'refined', 'label', 'prediction', 'target')
VOID_TAGS = {'meta', 'img', 'input', 'br', 'path'}
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


# ------------------------------------------------------------------------- made-up runs
def score_table(rng, **extra):
    values = rng.uniform(10, 90, (len(CLASSES), 3)).round(4)
    names = ('iou', 'precision', 'recall')
    rows = [
        {'name': name, 'pixels': 9, **dict(zip(names, row.tolist(), strict=True))}
        for name, row in zip(CLASSES, values, strict=True)
    ]
    rows[2]['iou'] = None
    miou = round(rng.uniform(10, 90), 4)
    shared = {'miou': miou, 'precision': 71.5, 'recall': 62.25}
    return {**shared, 'accuracy': 80.0, 'images': 7, 'kept': 100.0} | {
        'per_class': rows,
        **extra,
    }


def draw(folder, photo, classes, score, rng):
    """Pictures as tools/evaluate.py draws them; the photo itself is always the same."""
    tiles = []
    path = folder / 'pictures' / re.sub(r'\W', '_', photo)
    path.mkdir(parents=True, exist_ok=True)
    cams = {f'cam_{CLASSES.index(name):03d}': f'CAM {name}' for name in classes}
    for step in (*STEPS, *cams):
        same = step in ('photo', 'target')
        pixels = np.full((30, 40, 3), 90) if same else rng.integers(0, 255, (30, 40, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path / f'{step}.png')
        title = cams.get(step, step.title())
        file = (path / f'{step}.png').relative_to(folder).as_posix()
        tiles.append({'title': title, 'file': file})
    iou = {'prediction': score, 'refined': score}
    return {'id': photo, 'classes': classes, 'iou': iou, 'tiles': tiles, 'fixed': True}


def write_metrics(folder, *, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [
        {'key': f'{split}/{key}', 'split': split, 'title': key, 'policy': 'p; q'}
        | score_table(rng, threshold=0.3)
        for split in ('train', 'val')
        for key in ('raw_cams', 'refined', 'segmentor')
    ]
    photos = [(PHOTO, [CLASSES[1], 'horse'], 90.0), ('bad', ['horse'], 12.0 + seed)]
    bins = [
        {'low': 0.0, 'high': 0.5, 'pixels': 10, 'correct': 30.0},
        {'low': 0.5, 'high': 1.0, 'pixels': 30, 'correct': 80.0},
    ]
    metrics = {
        'classes': CLASSES,
        'palette': [[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]],
        'numbers': numbers,
        'sweeps': {'train': {'thresholds': [0.1, 0.3, 0.5], 'miou': [20, 31, None]}},
        'reliability': {
            'val': {'bins': bins, 'pixels': 40, 'correct': 67.5, 'separation': 71.25}
        },
        'confusion': {
            'val': {
                'segmentor': [[8, 1, 0, 1], [3, 6, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
            }
        },
        'photo_scores': {'val': {'a': 4.0, 'b': 100.0, 'c': 99.0}},
        'pictures': {'train': [], 'val': [draw(folder, *p, rng) for p in photos]},
        'photos': {'train': 7, 'val': 7},
        'without_mask': {'train': 2, 'val': 0},
        'seconds': {'train': 1.0, 'val': 2.0},
        'run': {
            'config': 'configs/name_of_run.py',
            'checkpoint': 'c.pth',
            'run_dir': 'elsewhere/run',
            'iteration': 40,
            'seed': None,
            'date': '2026-01-01',
            'device': 'CPU',
            'versions': {'torch': '2'},
        },
    }
    (folder / 'metrics.json').write_text(json.dumps(metrics))
    return metrics


def write_log(folder, values):
    log = folder / '20260101' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [json.dumps({'loss': v, 'step': i}) for i, v in enumerate(values)]
    log.write_text('\n'.join(lines))


def stage(tool, *arguments, seconds=60.0, state='done'):
    return {
        'command': ['python', f'/elsewhere/tools/{tool}', *arguments],
        'seconds': seconds,
        'peak_memory_mib': 1234.0 if state == 'done' else None,
        'finished': '2026-01-02T03:04:05+0000' if state == 'done' else None,
        'state': state,
    }


def write_recipe(folder, *, seed=0):
    """A run of a recipe that is still at work, its paths noted in another folder."""
    rng = np.random.default_rng(seed)
    place = f'work_dirs/recipes/{folder.name}'
    sweep = [
        {'threshold': t, 'miou': m, 'precision': m, 'recall': m}
        for t, m in ((0.1, 30.0), (0.2, 40.0), (0.3, None))
    ]
    table = score_table(rng, policy='threshold 0.2, an oracle', threshold=0.2)
    (folder / 'scores').mkdir(parents=True)
    (folder / 'scores' / 'cams.json').write_text(json.dumps({**table, 'sweep': sweep}))
    write_log(folder / 'net', [3.0, 2.0, 1.0])
    stages = {
        'train <net>': stage('train.py', 'c.py', '--work-dir', f'{place}/net'),
        'score CAMs': stage(
            'eval_pseudo_labels.py', '--json', f'{place}/scores/cams.json', seconds=30.0
        ),
        'score labels': stage(
            *('eval_pseudo_labels.py', '--json', f'{place}/scores/not_yet.json'),
            seconds=0.0,
            state='running',
        ),
    }
    (folder / 'stages.json').write_text(json.dumps(stages))
    return table


@pytest.fixture
def result_dir(tmp_path):
    write_metrics(tmp_path / 'out')
    return tmp_path / 'out'


# ------------------------------------------------------------------------ read the page
class Page(HTMLParser):
    """Checks that tags close each other, and collects what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []
        self.tags, self.images = [], []
        self.text, self.data = '', {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.addresses += [
            v for k, v in attrs.items() if k in ('src', 'href', 'srcset')
        ]
        if 'id' in attrs:
            self.ids.append(attrs['id'])
        if tag == 'data':
            self.numbers = self.data.setdefault(self.section(), [])
            self.numbers.append([float(attrs['value']), ''])
        if tag not in VOID_TAGS:
            self.open.append((tag, attrs.get('id')))

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if tags and tags[-1] == 'data':
            self.numbers[-1][1] += data
        if not {'script', 'style'} & set(tags):
            self.text += ' ' + ' '.join(data.split())

    def section(self):
        return next((i for tag, i in self.open if tag == 'section'), 'top')

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def values(self, section):
        return [value for value, _ in self.data[section]]


def read(*folders, **options):
    page = write_report(*folders, **options)
    return Page(page.read_text())


# -------------------------------------------------------------------------- single runs
def test_page_is_whole_and_asks_for_nothing(result_dir):
    page = read(result_dir)
    inside = [a for a in page.addresses if a.startswith('data:image/webp;base64,')]
    # Two photos with five steps and three CAMs, the rest are links within the page.
    assert len(inside) == 13
    links = [a for a in page.addresses if a not in inside]
    assert len(links) >= 5
    assert {a[0] for a in links} == {'#'}
    assert {a[1:] for a in links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert all(image['alt'] for image in page.of('img'))
    source = (result_dir / 'report.html').read_text()
    assert not re.search(r'url\(|@import|fetch\(|XMLHttp|https?://', source)
    assert 'prefers-color-scheme: dark' in source
    assert '@media print' in source
    assert 'width=device-width' in source


def test_numbers_are_those_of_metrics_json(result_dir):
    numbers = json.loads((result_dir / 'metrics.json').read_text())['numbers']
    page = read(result_dir)
    written = page.data['numbers']
    assert [v for v, _ in written[::2]] == [n['miou'] for n in numbers]
    assert [text for _, text in written[::2]] == [f'{n["miou"]:.2f}' for n in numbers]
    val = [n for n in numbers if n['split'] == 'val']
    bars = [entry['iou'] for n in val for entry in n['per_class'] if entry['iou']]
    assert sorted(page.values('classes')) == sorted(bars)
    assert page.values('spread') == [99.0]
    assert '2 without a mask' in page.text
    assert 'not scored: ghost' in page.text


def test_confusion_is_in_percent_of_the_mask(result_dir):
    page = read(result_dir)
    cells = [a['style'] for a in page.of('td') if a.get('style')]
    # The row of ghost, which no mask shows, is left out.
    assert cells[:8] == [f'--v:{v}.0' for v in (80, 10, 0, 10, 30, 60, 0, 10)]
    assert len(cells) == 12
    assert page.data['confusion'][0] == [50.0, '50.0']
    assert 'horse taken for background' in page.text


def test_confusion_of_many_classes_is_a_list(result_dir):
    metrics = json.loads((result_dir / 'metrics.json').read_text())
    metrics['classes'] = [f'class {i}' for i in range(40)]
    matrix = np.eye(40, dtype=int) * 9
    matrix[7, 5] = 1
    metrics['confusion'] = {'train': {'labels': matrix.tolist()}}
    metrics |= {'numbers': [], 'pictures': {}}
    (result_dir / 'metrics.json').write_text(json.dumps(metrics))
    page = read(result_dir)
    assert not page.of('td')
    assert 'class 7 taken for class 5 10.0' in page.text


def test_names_are_escaped(result_dir):
    page = read(result_dir)
    assert CLASSES[1] in page.text
    assert PHOTO in page.text
    assert ('b', {}) not in page.tags
    assert ('i', {}) not in page.tags
    ids = [a['data-id'] for a in page.of('article')]
    # The worst first.
    assert ids == ['bad', PHOTO]
    names = [a['data-name'] for a in page.of('option') if 'data-name' in a]
    assert names == [CLASSES[1], 'horse']


def test_missing_parts_are_named(result_dir):
    metrics = json.loads((result_dir / 'metrics.json').read_text())
    for key in ('reliability', 'confusion', 'photo_scores', 'palette'):
        metrics.pop(key)
    metrics |= {'pictures': {}, 'sweeps': {}}
    metrics['numbers'] = [n for n in metrics['numbers'] if n['split'] == 'train']
    metrics['photos'].pop('val')
    (result_dir / 'metrics.json').write_text(json.dumps(metrics))
    page = read(result_dir)
    assert page.ids == ['numbers', 'classes', 'left-out', 'this']
    for what in ('Confusion', 'Threshold sweep', 'Reliability', 'Training', 'Photos'):
        assert what in page.text.split('Not on this page')[1]
    assert 'Validation' not in page.text
    write_log(result_dir, [2.0, 1.0])
    assert 'training' in read(result_dir).ids


def test_many_photos_are_limited_with_a_sentence(result_dir):
    page = read(result_dir, max_photos=1)
    assert [a['data-id'] for a in page.of('article')] == ['bad']
    assert '1 of 7 photos; 1 more were drawn and are left out' in page.text
    assert 'gallery' not in read(result_dir, max_photos=0).ids


def test_run_of_a_recipe_that_is_not_finished(tmp_path, monkeypatch):
    table = write_recipe(tmp_path / 'recipe' / 'seed_0')
    monkeypatch.chdir(tmp_path)
    page = read('recipe/seed_0')
    assert page.ids[:5] == ['scores', 'classes', 'sweep', 'training', 'timeline']
    assert page.values('scores')[0] == table['miou']
    assert page.values('timeline') == [table['miou']]
    assert page.values('sweep') == [40.0]
    assert '2 of the 3 stages that were begun are done, 1 min 30 s of work' in page.text
    assert 'finished 2026-01-02 03:04' in page.text
    assert 'running when last noted' in page.text
    assert 'train <net>' in page.text
    bars = [a['style'] for a in page.of('i') if ';width' in a.get('style', '')]
    assert bars[0] == 'left:0.00%;width:66.67%'
    assert bars[1] == 'left:66.67%;width:33.33%'


# -------------------------------------------------------------------------- comparisons
def test_seeds_stand_together(tmp_path):
    tables = {}
    for row in ('plain', 'gate'):
        for seed in (0, 1, 2):
            offset = seed + 10 * (row == 'gate')
            folder = tmp_path / row / f'seed_{seed}'
            metrics = write_metrics(folder / 'evaluation', seed=offset)
            tables[row, seed] = metrics['numbers']
    folders = [tmp_path / 'plain', tmp_path / 'gate']
    page = read(folders, out=tmp_path / 'page.html')
    for column, row in enumerate(('plain', 'gate')):
        values = [tables[row, s][5]['miou'] for s in (0, 1, 2)]
        mean, spread = page.values('numbers')[2 * column : 2 * column + 2]
        assert mean == pytest.approx(np.mean(values))
        assert spread == pytest.approx(np.std(values, ddof=1))
    pairs = [(tables['gate', s][5], tables['plain', s][5]) for s in (0, 1, 2)]
    changes = [gate['miou'] - plain['miou'] for gate, plain in pairs]
    wanted = f'{np.mean(changes):+.2f} ± {np.std(changes, ddof=1):.2f}'
    assert wanted.replace('-', '\N{MINUS SIGN}') in page.text
    # A whole recipe's folder gives the same runs, in the order of their names.
    again = read(tmp_path)
    assert {'plain', 'gate'} <= set(again.text.split())
    assert sorted(again.values('numbers')) == pytest.approx(
        sorted(page.values('numbers'))
    )
    # The photo and the mask are in the page once for all six runs.
    copies = [a for a in page.of('figure') if 'data-copy' in a]
    assert len(page.of('article')) == 2
    assert {a['data-step'] for a in copies} == {'photo', 'target'}
    assert len(copies) == 2 * 2 * 5
    assert len(page.of('img')) == 6 * (2 * len(STEPS) + 3) - 2 * 2 * 5


def test_runs_of_one_recipe_alone(tmp_path):
    tables = [write_recipe(tmp_path / f'seed_{s}', seed=s) for s in (0, 2, 10)]
    page = read(tmp_path)
    values = [t['miou'] for t in tables]
    assert page.values('numbers')[:3] == values
    assert page.values('numbers')[3] == pytest.approx(np.mean(values))
    assert page.text.index('seed 2 ') < page.text.index('seed 10')
    assert 'Photos no pictures were drawn' in page.text


def test_many_runs_are_compared_in_rows(tmp_path):
    folders = [tmp_path / f'run_{i}' for i in range(4)]
    tables = [write_metrics(f, seed=i)['numbers'] for i, f in enumerate(folders)]
    page = read(folders, out=tmp_path / 'page.html')
    # The segmentor on validation photos leads.
    assert page.values('numbers')[:4] == [numbers[5]['miou'] for numbers in tables]
    change = tables[3][5]['miou'] - tables[0][5]['miou']
    assert f'{change:+.2f}'.replace('-', '\N{MINUS SIGN}') in page.text
    assert 'Comparison of 4 runs' in page.text
    assert 'colspan' in page.of('th')[3]


def test_runs_without_a_common_photo(tmp_path):
    for name in ('one', 'two'):
        metrics = write_metrics(tmp_path / name)
        for picture in metrics['pictures']['val']:
            picture['id'] += name
        (tmp_path / name / 'metrics.json').write_text(json.dumps(metrics))
    page = read([tmp_path / 'one', tmp_path / 'two'], out=tmp_path / 'page.html')
    assert 'the runs have drawn no photo in common' in page.text


# ----------------------------------------------------------------------------- mistakes
def test_mistakes_are_told_in_a_sentence(result_dir, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=r'tools/evaluate\.py CONFIG CHECKPOINT'):
        write_report(tmp_path / 'empty')
    with pytest.raises(InputError, match='is no folder'):
        write_report(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='--out'):
        write_report([result_dir, result_dir])
    with pytest.raises(InputError, match='is no report'):
        write_report(result_dir, out=result_dir / 'metrics.json')
    assert 'numbers' in json.loads((result_dir / 'metrics.json').read_text())
    with pytest.raises(InputError, match='0 or more, got -1'):
        write_report(result_dir, max_photos=-1)
    broken = next(result_dir.glob('pictures/bad/label.png'))
    broken.write_bytes(b'no picture')
    with pytest.raises(InputError, match=r'label\.png'):
        write_report(result_dir)
    broken.unlink()
    with pytest.raises(InputError, match=r'label\.png'):
        write_report(result_dir)


# ------------------------------------------------------------------------- in a browser
# Loads the report as wide as a phone, works its controls, and notes what can be seen.
PROBE = """<!doctype html><title>wait</title>
<iframe src="%s" width="390" height="900"></iframe>
<script>
const frame = document.querySelector('iframe');
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const seen = e => e.getClientRects().length > 0;
  const all = what => [...page.querySelectorAll(what)];
  const set = (name, value) => {
    const control = page.querySelector(`#gallery select[name=${name}]`);
    control.value = value;
    control.dispatchEvent(new Event('change', { bubbles: true }));
  };
  const look = () => {
    const card = all('article').find(seen);
    const right = card.querySelector('figure.right');
    return {
      photos: all('article').filter(seen).map(a => a.dataset.id),
      shown: [...card.querySelectorAll('img')].filter(i => i.naturalWidth && seen(i))
        .map(i => i.parentElement.dataset.step),
      right: right.dataset.step,
      clip: view.getComputedStyle(right).clipPath,
      pressed: card.querySelector('[aria-pressed=true]').textContent,
      label: card.querySelector('.range').getAttribute('aria-label'),
      count: page.querySelector('#gallery output').textContent,
      hash: decodeURIComponent(view.location.hash),
    };
  };
  const found = { first: look() };
  set('class', '');
  found.all = look();
  const range = all('.range').find(seen);
  range.value = 80;
  range.dispatchEvent(new Event('input', { bubbles: true }));
  all('article')[0].querySelector('button[data-step=target]').click();
  found.moved = look();
  set('step', 'cam');
  found.cam = look();
  set('class', [...page.querySelectorAll('option[data-name]')].at(-1).value);
  found.horse = all('article').filter(seen)
    .map(a => a.querySelector('.tag.r').textContent);
  const focusable = 'a[href], button, select, input, summary, [tabindex]';
  found.unreachable = all(focusable).filter(e => e.tabIndex < 0).length;
  found.unnamed = all('button, select, input').filter(
    e => !e.textContent && !e.ariaLabel && !e.labels?.length).length;
  found.width = page.documentElement.scrollWidth;
  found.loaded = view.performance.getEntriesByType('resource')
    .map(e => e.name).filter(n => !n.startsWith('data:'));
  found.pictures = all('img').every(i => i.complete && i.naturalWidth);
  document.title = encodeURIComponent(JSON.stringify(found));
};
</script>"""


def work_page(report, tmp_path, state):
    probe = tmp_path / 'probe.html'
    probe.write_text(PROBE % f'{report.as_uri()}#{state}')
    command = [
        *(BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic'),
        *('--no-first-run', '--disable-background-networking', '--disable-sync'),
        *('--disable-component-update', f'--user-data-dir={tmp_path / "profile"}'),
        *('--allow-file-access-from-files', '--virtual-time-budget=5000'),
        *('--window-size=600,1000', '--dump-dom', probe.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search('<title>(.*?)</title>', done.stdout)
    assert title, done.stderr[-2000:]
    assert title[1] != 'wait', 'the page has not been worked'
    return json.loads(unquote(title[1]))


@pytest.mark.skipif(BROWSER is None, reason='no chromium to open the page in')
def test_filter_and_slider_work_in_a_browser(result_dir, tmp_path):
    report = write_report(result_dir)
    state = urlencode({'set': 'val', 'class': CLASSES[1], 'at': 25, 'left': 'refined'})
    found = work_page(report, tmp_path, state)
    # The state in the address.
    assert found['first']['photos'] == [PHOTO]
    assert found['first']['count'] == '1 of 2 photos'
    assert sorted(found['first']['shown']) == ['prediction', 'refined']
    assert found['first']['clip'] == 'inset(0px 0px 0px 25%)'
    # The filter, the slider, the steps.
    assert found['all']['photos'] == ['bad', PHOTO]
    assert 'class=' not in found['all']['hash']
    assert found['moved']['clip'] == 'inset(0px 0px 0px 80%)'
    assert sorted(found['moved']['shown']) == ['refined', 'target']
    assert found['moved']['pressed'] == 'Target'
    assert found['cam']['label'] == 'bad: Refined on the left, CAM horse on the right'
    # Of a photo with two CAMs that of the class.
    assert found['horse'] == ['CAM horse', 'CAM horse']
    # Keyboard, width, network.
    assert found['unreachable'] == 0
    assert found['unnamed'] == 0
    assert found['width'] <= 390
    assert found['loaded'] == []
    assert found['pictures']
    # Side by side, where photos and masks are copied by the script.
    folders = [tmp_path / f'a_run_of_a_rather_long_name_{i}' for i in range(3)]
    for i, folder in enumerate(folders):
        write_metrics(folder, seed=i)
    several = write_report(folders, out=tmp_path / 'several.html')
    found = work_page(several, tmp_path, urlencode({'step': 'target'}))
    assert found['first']['shown'] == ['photo', 'target'] * 3
    assert found['pictures']
    assert found['width'] <= 390
