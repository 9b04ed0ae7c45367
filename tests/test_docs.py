"""Every command, snippet, link and figure of README and docs is right."""

import argparse
import ast
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import mmseg.registry
import numpy as np
import pytest
import torch
import yaml
from docs_markdown import PAGES, ROOT, anchors, blocks, commands, links
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

import mmwsss.functional
from mmwsss import registry
from mmwsss.apis.recipe import check_stage_names, load_recipe
from mmwsss.datasets.synthetic import generate

pytestmark = pytest.mark.mm
DOCS = ROOT / 'docs'
EXTEND, MIXING, OWN_DATA = (DOCS / f'{p}.md' for p in ('extend', 'mixing', 'own_data'))


def named_blocks(page):
    return {b.file_name: b for b in blocks('python', [page]) if b.file_name}


# ------------------------------------------------------------------------- snippets
# Those of OWN_DATA need its photos, and run below.
SNIPPETS = [b for b in blocks('python') if b.file_name is None and b.page != OWN_DATA]


@pytest.mark.parametrize('block', SNIPPETS, ids=str)
def test_snippet_runs_or_is_a_fragment_that_parses(block, tmp_path, monkeypatch):
    if '...' in block.text:
        # "..." may stand behind arguments with names, where Python has no place for it.
        assert ast.parse(re.sub(r', \.\.\.(?=[,)])', '', block.text)).body
        return
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block.text, str(block), 'exec'), names)
    assert names.keys() - {'__builtins__'}


def test_tests_named_on_pages_exist():
    """A promise with a test beside it must not outlive the test."""
    written = {
        name
        for path in (ROOT / 'tests').rglob('test_*.py')
        for name in re.findall(r'^def (test_\w+)', path.read_text(), re.MULTILINE)
    }
    named = {
        (page.name, name)
        for page in (ROOT / 'docs/methods').glob('*.md')
        for name in re.findall(r'`(test_\w+)`', page.read_text())
    }
    assert named
    assert [entry for entry in named if entry[1] not in written] == []


def test_parts_named_on_pages_exist():
    """Types as in a config, and names in code type; MMSegmentation's may be bare."""
    kinds = [
        'MODELS',
        'DATASETS',
        'DATA_SAMPLERS',
        'TRANSFORMS',
        'HOOKS',
        'LOOPS',
        'METRICS',
    ]
    ours = [getattr(registry, kind) for kind in kinds]
    theirs = [getattr(mmseg.registry, kind) for kind in kinds]
    texts = [page.read_text() for page in PAGES]
    prefixed = {n for t in texts for n in re.findall(r'mmwsss\.([A-Z]\w+)', t)}
    prefixed -= {'Name'}
    assert len(prefixed) > 20
    missing = [n for n in prefixed if not any(x.get(f'mmwsss.{n}') for x in ours)]
    assert missing == []
    bare = {
        n
        for t in texts
        for n in re.findall(r'`((?=\w*[a-z])[A-Z][a-z]*[A-Z]\w*)[`(]', t)
    }
    assert len(bare) > 40
    nodes = [('mmwsss.{}', node) for node in ours] + [('{}', node) for node in theirs]
    for name in bare - prefixed - NOT_REGISTERED:
        assert any(node.get(form.format(name)) for form, node in nodes), name


# Named on pages, but no entry of a registry.
NOT_REGISTERED = {'Labels', 'CAMNetwork', 'SyncBN'}


# ------------------------------------------------------------------ worked configs
@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """What lies where in a clone, with a few drawn photos and the pages' files."""
    root = tmp_path_factory.mktemp('clone')
    generate(root / 'data/synthetic', num_train=4, num_val=1)
    (root / 'mmwsss').symlink_to(ROOT / 'mmwsss')
    (root / 'configs').mkdir()
    for path in (ROOT / 'configs').iterdir():
        (root / 'configs' / path.name).symlink_to(path)
    for page in (MIXING, EXTEND, OWN_DATA):
        for name, block in named_blocks(page).items():
            (root / name).write_text(block.text)
    return root


@pytest.fixture
def in_clone(clone, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.syspath_prepend(str(clone))
    return clone


def train_shortly(config):
    """Train for a step without validation; the runner afterwards."""
    cfg = Config.fromfile(config)
    cfg.train_cfg.update(max_iters=1, val_interval=100)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.default_hooks.checkpoint.interval = cfg.default_hooks.logger.interval = 1
    cfg.work_dir = f'work_dirs/{Path(config).stem}'
    cfg.experiment_name = f'docs_{Path(config).stem}'
    # They look at more photos.
    watching = ('mmwsss.PseudoLabelProbeHook', 'mmwsss.PseudoLabelVisualizationHook')
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type not in watching]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert torch.tensor(runner.message_hub.get_scalar('train/loss').data[0]).isfinite()
    return runner


# What a config is about: types in the model, and a loss that it is trained with.
WORKED = {
    'my_chain_synth': ({'PAMR', 'PAR'}, 'decode.loss_balanced_ce'),
    'my_head_synth': ({'FCNHead', 'PresentDiceLoss'}, 'decode.loss_present_dice'),
    'my_stored_synth': ({'CroppedCAMs', 'FrozenCLIP'}, 'decode.loss_balanced_ce'),
    'my_plain_mmseg': (
        {'PseudoLabelSegmentor', 'ScaleScheduledDataPreProcessor'},
        'decode.loss_ce',
    ),
    'my_cam_source_synth': ({'CosineCAMs'}, 'cam.loss_cosine'),
    'my_refiner_synth': ({'GuidedFilter', 'PAR'}, 'decode.loss_balanced_ce'),
    'my_labeler_synth': ({'MarginLabeler'}, 'decode.loss_balanced_ce'),
    'my_loss_synth': ({'GeneralizedCrossEntropy'}, 'decode.loss_gce'),
}


@pytest.mark.parametrize('name', WORKED)
def test_worked_config_trains(name, in_clone, monkeypatch):
    if name == 'my_plain_mmseg':
        make_labels(in_clone, monkeypatch)
    if name == 'my_stored_synth':
        train_shortly('configs/clipdino_refine_synth.py')
        assert run_tool(page_command('--out work_dirs/cams_synth'), monkeypatch) == 0
    runner = train_shortly(f'configs/{name}.py')
    parts, loss = WORKED[name]
    assert {type(module).__name__ for module in runner.model.modules()} >= parts
    assert f'train/{loss}' in runner.message_hub.log_scalars


def make_labels(root, monkeypatch):
    """The command of the page, with what it needs."""
    if not (root / 'work_dirs/my_chain_synth/last_checkpoint').exists():
        train_shortly('configs/my_chain_synth.py')
    assert run_tool(page_command('--out data/synthetic/pseudo'), monkeypatch) == 0
    assert len(list((root / 'data/synthetic/pseudo/SegmentationClass').iterdir())) == 4


def page_command(end):
    """The command of the page that ends so."""
    (words,) = [
        words
        for block in blocks('bash', [MIXING])
        for words in commands(block)
        if ' '.join(words).endswith(end)
    ]
    return words


def test_every_worked_config_is_tested():
    files = {name for page in (MIXING, EXTEND) for name in named_blocks(page)}
    assert {f'configs/{name}.py' for name in WORKED} == {f for f in files if '/' in f}
    parts = [b for n, b in named_blocks(EXTEND).items() if '/' not in n]
    assert len(parts) == 4
    assert all(len(block.text.splitlines()) - 1 <= 30 for block in parts)


def test_guided_filter_of_the_page_follows_edges(in_clone):
    from my_refiner import GuidedFilter

    image = torch.zeros(1, 3, 24, 24)
    image[..., 10:] = 1.0
    scores = torch.zeros(1, 2, 24, 24)
    scores[:, 1, :, 8:] = 1.0
    scores[:, 0] = 1 - scores[:, 1]
    found = GuidedFilter(radius=3)(image, scores, torch.ones(1, 1))
    # The border moves from column 8 towards the photo's edge in front of column 10.
    assert (found[0, 1, 12, 10:] > 0.8).all()
    assert (found[0, 1, 12, :8] < 0.5).all()
    assert found[0, 1, 12, 9] < scores[0, 1, 12, 9]
    torch.testing.assert_close(found.sum(1), torch.ones(1, 24, 24))


def test_loss_of_the_page_is_as_published(in_clone):
    from my_loss import GeneralizedCrossEntropy

    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64).float()
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, 0] = 255
    expected, count = 0.0, 0
    for n, y, x in (label != 255).nonzero().tolist():
        p = logits[n, :, y, x].double().softmax(0)[label[n, y, x]]
        expected, count = expected + (1 - p**0.7) / 0.7, count + 1
    found = GeneralizedCrossEntropy(q=0.7)(logits, label)
    assert float(found) == pytest.approx(float(expected / count), rel=1e-5)


# ------------------------------------------------------------------------ own data
# In the place of real encoders, whose weights are a download.
TINY_TOWERS = """
towers = 'mmwsss/datasets/tiny_towers'
encoders = model['backbone']['encoders']
encoders['clip'].update(
    model=f'{towers}/clip.json',
    weights=f'{towers}/clip.safetensors',
    num_attentions=4,
)
encoders['dino'] = dict(
    arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
    weights=f'{towers}/dino.safetensors',
    patch_size=8,
    image_size=144,
)
model['decode_head'].update(in_channels=[96, 96], channels=48, num_heads=4)
model['data_preprocessor'] = dict(size=(128, 128))
train_pipeline[1]['scale'] = test_pipeline[1]['scale'] = (128, 128)
train_pipeline[2]['crop_size'] = (128, 128)
"""


@pytest.fixture
def my_photos(tmp_path, monkeypatch):
    """The photos, tags and config of the page."""
    (tmp_path / 'mmwsss').symlink_to(ROOT / 'mmwsss')
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    with open(tmp_path / 'configs/clipdino_refine_voc.py', 'a') as base:
        base.write(TINY_TOWERS)
    with open(tmp_path / 'configs/deeplabv3_mobileone_msrc.py', 'a') as base:
        base.write("model['backbone']['weights'] = None\n")
    monkeypatch.setattr('mmwsss.apis.config_names.resources', lambda: tmp_path)
    (config,) = named_blocks(OWN_DATA).values()
    (tmp_path / config.file_name).write_text(config.text)
    (table,) = blocks('text', [OWN_DATA])
    (tmp_path / 'my_photos/photos').mkdir(parents=True)
    (tmp_path / 'my_photos/tags.csv').write_text(table.text)
    generator = np.random.default_rng(0)
    for line in table.text.splitlines()[1:]:
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        name = line.partition(',')[0]
        Image.fromarray(pixels).save(tmp_path / 'my_photos/photos' / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_page_on_own_data_leads_from_tags_to_masks(my_photos, monkeypatch, capsys):
    for block in blocks('bash', [OWN_DATA]):
        for words in commands(block):
            run_command(words, monkeypatch)
    # Nobody corrected anything before they came back.
    np.testing.assert_equal(read_masks('corrected'), read_masks('my_masks'))
    (shown,) = blocks('json', [OWN_DATA])
    found = json.loads((my_photos / 'my_photos/image_labels.json').read_text())
    assert found == json.loads(shown.text)
    masks = read_masks('my_masks')
    assert len(masks) == 5
    assert {mask.shape for mask in masks.values()} == {(60, 80)}
    capsys.readouterr()
    (snippet,) = [b for b in blocks('python', [OWN_DATA]) if b.file_name is None]
    exec(compile(snippet.text, str(snippet), 'exec'), {})
    assert capsys.readouterr().out.count(' (60, 80) ') == 5


def read_masks(folder):
    files = Path(folder, 'SegmentationClass').glob('*.png')
    return {file.name: np.asarray(Image.open(file)) for file in files}


def run_command(words, monkeypatch):
    """A command of the page: as it is, but for trainings, which are cut short."""
    if words[:2] == ['python', 'tools/train.py']:
        (config,) = words[2:]
        train_shortly(config)
    elif words[0] == 'python':
        assert run_tool(words, monkeypatch) == 0
    elif words[:2] == ['mmwsss', 'train']:
        # What comes last counts.
        assert run_verb([*words, '--max-iters', '1', *QUICK]) == 0
    elif words[:2] == ['mmwsss', 'export']:
        # It takes its time, and tests of its own run it.
        understood_by_verb(words[1:])
    elif words[0] == 'mmwsss':
        # The doctor finds that photos of noise are not what they should be.
        assert run_verb(words) in ((0, 1) if words[1] == 'doctor' else (0,))
    else:
        pytest.fail(f'{words[0]} is not run')


# A step of two photos, without the hook that looks at more.
QUICK = [
    *('--cfg-options', 'train_dataloader.batch_size=2'),
    *('--cfg-options', 'train_dataloader.num_workers=0'),
    *('--cfg-options', 'train_dataloader.persistent_workers=False'),
]


def run_verb(words):
    """Run the command mmwsss in this process; its exit code."""
    from mmwsss.command import group

    assert words[0] == 'mmwsss'
    try:
        return group.main(words[1:], prog_name='mmwsss', standalone_mode=False) or 0
    except SystemExit as left:
        return left.code or 0


# ------------------------------------------------------------------------- commands
class Parsed(BaseException):
    """Carries what argparse read out of a tool that shall do nothing."""


def _stop_after(parse):
    def parse_and_stop(parser, *args, **kwargs):
        raise Parsed(parse(parser, *args, **kwargs))

    return parse_and_stop


def run_tool(words, monkeypatch):
    """Run a tool's file in this process; its exit code."""
    monkeypatch.setattr(sys, 'argv', [str(ROOT / words[1]), *words[2:]])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / words[1]), run_name='__main__')
    return left.value.code


SCRIPTS = {'quickstart.sh', 'run_tests.sh', 'run_tests_upstream.sh'}
DISTRIBUTED = {'tools/dist_train.sh': 'train.py', 'tools/dist_test.sh': 'test.py'}
KNOWN = {'cp', 'mkdir', 'tar', 'ruff', 'codespell', 'git', 'cd', 'sphinx-build', 'ls'}


def tool_call(words):
    """A command line as a call of one of our tools, None for another program's."""
    while words and re.match(r'\w+=', words[0]):
        words = words[1:]
    if words[:2] == ['/usr/bin/time', '-v']:
        words = words[2:]
    if not words or words[0] in KNOWN or words[:2] == ['pip', 'install']:
        return None
    if words[0] == 'torchrun':
        at = next(i for i, word in enumerate(words) if word.startswith('tools/'))
        return ['python', *words[at:]]
    if words[0] == 'bash' and words[1] in DISTRIBUTED:
        config, *rest = words[2:]
        number = rest.pop(1 if 'test' in words[1] else 0)
        assert number.isdigit(), words
        return ['python', f'tools/{DISTRIBUTED[words[1]]}', config, *rest]
    if words[:2] == ['bash', 'tools/slurm_train.sh']:
        return ['python', 'tools/train.py', *words[4:]]
    if words[0] == 'bash':
        assert Path(words[1]).name in SCRIPTS, words
        return None
    return words


COMMANDS = [
    pytest.param(words, id=f'{block}-{number}')
    for block in blocks('bash')
    for number, words in enumerate(commands(block))
]


@pytest.mark.parametrize('words', COMMANDS)
def test_command_is_understood_by_its_tool(words, monkeypatch, capsys, in_clone):
    call = tool_call(words)
    for word in call or words:
        if word.startswith(('configs/', 'tools/')):
            there = (in_clone if word.startswith('configs/') else ROOT) / word
            assert there.exists(), word
    if call is None:
        return
    if call[0] == 'mmwsss':
        for word in call[1:]:
            # A work directory stands for its config, once there was a training.
            if word.startswith('work_dirs/') and not Path(word).exists():
                Path(word).mkdir(parents=True)
                Path(word, 'saved.py').touch()
        understood_by_verb(call[1:])
        return
    assert call[0] == 'python', f'{words[0]} is not checked'
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', _stop_after(parse))
    monkeypatch.setattr(sys, 'argv', call[1:])
    try:
        runpy.run_path(str(ROOT / call[1]), run_name='__main__')
    except Parsed as parsed:
        check_stages(*parsed.args)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    else:
        pytest.fail('the tool read no command line')


def understood_by_verb(words):
    """Click reads the words, and does nothing."""
    import click

    from mmwsss.command import group
    from mmwsss.command.tools import TOOLS, parse

    context, command = click.Context(group), group
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(context, name)
        assert command, f'mmwsss has no {name}'
    command.make_context(name, list(words), parent=context)
    if name in TOOLS:
        # Its words are left to argparse.
        parse(name, words)


def check_stages(args):
    """Stages that a command names are those of its recipe."""
    if hasattr(args, 'recipe'):
        recipe = load_recipe(ROOT / args.recipe, root=ROOT)
        check_stage_names(recipe, [args.redo, args.only])


def test_extras_that_pages_install_exist():
    text = (ROOT / 'setup.py').read_text()
    known = ['all', *re.findall(r"^    '(\w+)': \[", text, re.MULTILINE)]
    for page in PAGES:
        for extras in re.findall(r"'(?:\.|mmwsss)\[([\w,]+)\]'", page.read_text()):
            assert set(extras.split(',')) <= set(known), page


def test_every_tool_and_verb_is_on_a_page():
    from mmwsss.command import VERBS

    texts = '\n'.join(page.read_text() for page in PAGES)
    for tool in (ROOT / 'tools').glob('[!_]*'):
        assert tool.suffix not in ('.py', '.sh') or tool.name in texts, tool.name
    for name in VERBS:
        assert re.search(rf'`(mmwsss )?{name}`|mmwsss {name}\b', texts), name


# ------------------------------------------------------------------ what pages say
@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(('http://', 'https://')):
            continue
        place, _, anchor = link.partition('#')
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_pages_belong_to_the_site():
    index = (DOCS / 'index.md').read_text()
    for page in PAGES[1:]:
        name = page.relative_to(DOCS).with_suffix('').as_posix()
        assert name == 'index' or re.search(rf'^{name}$', index, re.MULTILINE), name


def test_files_are_small():
    for path in DOCS.rglob('*'):
        if path.is_file():
            assert path.stat().st_size <= 200_000, path


def source_texts():
    for path in (ROOT / 'mmwsss').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_quoted_errors_are_in_the_code():
    code = '\n'.join(source_texts())
    quoted = [
        line.removeprefix('error: ')
        for block in blocks('text', [DOCS / 'troubleshooting.md'])
        for line in block.text.splitlines()
    ]
    assert len(quoted) > 10
    for sentence in quoted:
        for fragment in sentence.split('…'):
            assert fragment in code, fragment


# -------------------------------------------------------------------- model tables
def made_by(script):
    """A module that makes a page."""
    found = importlib.util.spec_from_file_location('m', DOCS / script)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_model_page_is_up_to_date():
    module = made_by('make_models.py')
    assert module.PAGE.read_text() == module.render(*module.read_metafiles()), (
        'run: python docs/make_models.py'
    )


def test_walkthrough_shows_the_commands_that_its_script_runs():
    module = made_by('make_walkthrough.py')
    page = module.PAGE.read_text()
    wanted = [command.page for step in module.STEPS for command in step.commands]
    assert [b.text.rstrip() for b in blocks('bash', [module.PAGE])] == wanted
    assert 'docs/make_walkthrough.py' in page
    # It names no machine.
    assert not re.search(r'(?<![\w.])/(work|tmp|home|root)/', page)


def test_every_config_has_an_entry():
    _, models = made_by('make_models.py').read_metafiles()
    listed = [model['Config'] for model in models]
    assert sorted(listed) == sorted(f'configs/{p.name}' for p in CONFIG_FILES)
    for model in models:
        assert model['Name'] == Path(model['Config']).stem


CONFIG_FILES = sorted((ROOT / 'configs').glob('*.py'))


def test_figures_of_the_model_page_are_those_of_the_readme():
    readme = (ROOT / 'README.md').read_text()
    said = {' '.join(w) for b in blocks('bash', PAGES[:1]) for w in commands(b)}
    _, models = made_by('make_models.py').read_metafiles()
    results = [result for model in models for result in model.get('Results', [])]
    assert results
    for result in results:
        value, spread = result['Metrics'].values()
        assert f'{value} ± {spread}' in readme, result
        assert result['Command'] in said, result


def test_metafiles_have_the_format_of_openmmlab():
    collections, models = made_by('make_models.py').read_metafiles()
    names = [c['Name'] for c in collections]
    for model in models:
        assert model['In Collection'] in names
        assert {'Training Data', 'Learns From', 'Pretrained'} == set(model['Metadata'])
        for result in model.get('Results', []):
            assert {'Task', 'Dataset', 'Metrics'} <= set(result)
    for collection in collections:
        assert (ROOT / collection['README']).exists()
    assert yaml.safe_load((ROOT / 'model-index.yml').read_text()).keys() == {'Import'}


# ---------------------------------------------------------------- functions, notebook
def test_api_page_lists_all_functions():
    text = (DOCS / 'api.md').read_text()
    listed = re.findall(r'^\.\. auto\w+:: mmwsss\.functional\.(\w+)$', text, re.M)
    assert sorted(listed) == sorted(mmwsss.functional.__all__)


def test_notebook_runs(monkeypatch):
    path = DOCS / 'notebooks/first_look.ipynb'
    cells = json.loads(path.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert all(not cell['outputs'] for cell in code)
    names, pictures = {}, []
    threads = torch.get_num_threads()
    for cell in code:
        tree = ast.parse(''.join(cell['source']))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, 'exec'), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), path.name, 'eval'), names)
            pictures += [value] if isinstance(value, Image.Image) else []
    torch.set_num_threads(threads)
    assert len(pictures) == 3
    assert names['miou']['PAR'] > names['miou']['CAMs'] > 0.2


def test_site_builds_without_a_warning(tmp_path):
    for name in ('sphinx', 'myst_parser', 'furo'):
        pytest.importorskip(name, reason=f'the site needs {name}: see docs/index.md')
    build = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html']
    done = subprocess.run(
        [*build, '-d', str(tmp_path / 'doctrees'), str(DOCS), str(tmp_path / 'html')],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'html/index.html').exists()
