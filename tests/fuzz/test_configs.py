"""Damaged recipes, and values given by --cfg-options."""

from pathlib import Path

import pytest
import tiny_run
from fuzz.mutations import LEAVES, changed, check, damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st

from mmwsss.apis.photos import list_photos
from mmwsss.apis.recipe import Recipe, load_recipe
from mmwsss.apis.recipe_runs import format_plan
from mmwsss.command.found import read_config

pytestmark = pytest.mark.mm
ROOT = Path(__file__).resolve().parents[2]
RECIPE = dict(
    work_dir='work',
    seeds=[0, 1],
    config='config.py',
    common=dict(train_cfg=dict(max_iters=3)),
    parts=dict(long=dict(train_cfg=dict(max_iters=9), values=dict(cut='0.3'))),
    rows={'short': [], 'long': ['long']},
    configs=dict(other=dict(config='config.py', changes=dict(model=dict(a=1)))),
    values=dict(cut='0.2'),
    stages=dict(
        train=dict(
            command=['tools/train.py', '{config}', '{other}'], outputs='{run}/a'
        ),
        label=dict(
            command=[
                'tools/make_pseudo_labels.py',
                '{config}',
                '--background',
                '{cut}',
            ],
            needs=['train'],
            inputs=['{run}/a'],
            outputs=['{run}/labels'],
        ),
    ),
    columns={'mIoU': ('{run}/metrics.json', 'numbers.val.miou')},
)


def as_python(content: object) -> str:
    if not isinstance(content, dict):
        return repr(content)
    lines = (f'{key} = {value!r}\n' for key, value in content.items())
    numbers = "nan, inf = float('nan'), float('inf')\n"
    return numbers + ''.join(lines)


TEXTS = st.one_of(
    changed(RECIPE).map(as_python),
    damaged(as_python(RECIPE).encode()).map(lambda b: b.decode('utf-8', 'ignore')),
)


@fuzzed(200, given(text=TEXTS))
def test_recipes(recipe_folder, text):
    path = recipe_folder / 'recipe.py'
    path.write_text(text)

    def read():
        recipe = load_recipe(path, root=ROOT)
        assert isinstance(recipe, Recipe)
        assert format_plan(recipe, run=None, root=ROOT, redo=None, only=None)

    check(read)
    assert {p.name for p in recipe_folder.iterdir()} <= {'recipe.py', 'config.py'}


@pytest.fixture(scope='module')
def recipe_folder(tmp_path_factory):
    """A folder with the recipe's config, where everything runs."""
    folder = tmp_path_factory.mktemp('recipes')
    (folder / 'config.py').write_text('model = dict(a=0)\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('config')
    content = tiny_run.config(tiny_run.draw(folder / 'data'))
    content['data_root'] = 'x'
    # Packing eight photos takes longer than all the rest.
    content['train_dataloader']['dataset']['serialize_data'] = False
    return tiny_run.write_config(folder / 'tiny.py', content)


def keys(content, before=''):
    """All keys of a config, with dots between."""
    entries = content.items() if isinstance(content, dict) else ()
    for key, value in entries:
        yield f'{before}{key}'
        yield from keys(value, f'{before}{key}.')


KEYS = st.sampled_from(
    sorted(
        {*keys(tiny_run.config(Path('x')))} | {'a', '', '.', 'a.b', '_base_', 'model.'}
    )
)
VALUES = st.one_of(
    LEAVES.map(repr),
    st.sampled_from(['', '(', '[', '[1,', '(1,2)', '"', "'", '[[1],[2]]', '{}', '=']),
    st.sampled_from(['None', 'true', '1e999', '[a,b]', '0x10', '$x', 'a=b', '{{x}}']),
)


@fuzzed(
    200,
    given(
        words=st.lists(st.tuples(KEYS, VALUES).map('='.join), min_size=1, max_size=3)
    ),
)
def test_values_of_the_command_line(config, words):
    def read():
        cfg = read_config(config, words)
        list_photos(cfg, split='train')

    check(read)
