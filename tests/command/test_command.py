"""The group of verbs: what it loads, what it says, and with which code it leaves."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import mmwsss.command
from mmwsss.command import VERBS, group, main
from mmwsss.command.common import verb
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def leaves(command, words):
    """The words of all commands below one, itself where it is none of several."""
    if not isinstance(command, click.Group):
        return [words]
    return [
        leaf
        for name in command.list_commands(None)
        for leaf in leaves(command.get_command(None, name), [*words, name])
    ]


def test_every_verb_of_the_table_is_there_with_an_example():
    found = leaves(group, [])
    assert {words[0] for words in found} == set(VERBS)
    for words in found:
        result = CliRunner().invoke(group, [*words, '--help'], prog_name='mmwsss')
        assert result.exit_code == 0, result.exception
        name = ' '.join(['mmwsss', *words])
        # What the mm packages print when they are imported comes before.
        usage, _, example = result.output.partition('Example')
        assert re.search(rf'^Usage: {name}\b', usage, re.MULTILINE)
        assert name in example


def test_help_loads_neither_torch_nor_mm():
    code = (
        'import sys\n'
        'from click.testing import CliRunner\n'
        'from mmwsss.command import TOOLS, VERBS, group\n'
        'result = CliRunner().invoke(group, ["--help"], prog_name="mmwsss")\n'
        'early = {m for m in sys.modules if m.startswith("mmwsss.command.")}\n'
        'early -= {f"mmwsss.command.{m}" for m in ("common", "found", "tools")}\n'
        # Those have the options of their tools, which are where the work is done.
        'for name in set(VERBS) - set(TOOLS):\n'
        '    CliRunner().invoke(group, [name, "--help"])\n'
        'heavy = {"torch", "numpy", "mmengine", "mmcv", "mmseg"} & set(sys.modules)\n'
        'print(sorted(early), sorted(heavy))\n'
        'print(result.output)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    first, _, shown = done.stdout.partition('\n')
    assert first == '[] []'
    for name, sentence in VERBS.items():
        assert f'{name} ' in shown
        assert sentence in shown


def leave(monkeypatch, *words):
    """Exit code of the command line."""
    monkeypatch.setattr(sys, 'argv', ['mmwsss', *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@pytest.fixture
def fake_verb(monkeypatch):
    """Put a function behind the verb ``train``."""

    def use(function):
        module = type(sys)('mmwsss.command.fake')
        module.command = verb('train', example='mmwsss train')(function)
        monkeypatch.setitem(sys.modules, 'mmwsss.command.train', module)

    return use


def test_without_a_verb_it_shows_the_help(monkeypatch, capsys):
    assert leave(monkeypatch) == 0
    assert 'make-cams' in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_one_sentence_and_code_2(monkeypatch, capsys):
    assert leave(monkeypatch, 'trian') == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such command 'trian'")
    assert error.count('\n') == 1
    assert leave(monkeypatch, 'test', 'clipdino_refine_voc') == 2
    assert 'mmwsss test --help' in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_code_1(monkeypatch, capsys, fake_verb):
    def function():
        raise InputError('the thing is wrong; mend it')

    fake_verb(function)
    assert leave(monkeypatch, 'train') == 1
    assert capsys.readouterr().err == 'error: the thing is wrong; mend it\n'


def test_ctrl_c_is_code_130(monkeypatch, capsys, fake_verb):
    def function():
        raise KeyboardInterrupt

    fake_verb(function)
    assert leave(monkeypatch, 'train') == 130


def test_a_verb_decides_the_code(monkeypatch, fake_verb):
    fake_verb(lambda: 7)
    assert leave(monkeypatch, 'train') == 7


def test_a_defect_keeps_its_traceback(monkeypatch, fake_verb):
    def function():
        raise ZeroDivisionError

    fake_verb(function)
    monkeypatch.setattr(sys, 'argv', ['mmwsss', 'train'])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_missing_verb_leaves_the_others_alone(monkeypatch, capsys):
    monkeypatch.setitem(mmwsss.command.VERBS, 'fly', 'not written yet')
    assert leave(monkeypatch, '--help') == 0
    assert 'not written yet' in capsys.readouterr().out
    assert leave(monkeypatch, 'configs', 'clipdino_refine_voc') == 0


def test_it_is_a_click_group():
    assert isinstance(group, click.Group)
    assert group.list_commands(None) == list(VERBS)


@pytest.mark.parametrize('name', VERBS)
def test_who_reads_a_checkpoint_may_trust_it(name):
    """The refusal of an unsafe file names the option."""
    verb = group.get_command(click.Context(group), name)
    options = {word for param in verb.params for word in param.opts}
    reads = 'checkpoint' in options or '--resume' in options
    assert ('--trust' in options) == reads


@pytest.mark.parametrize(
    ('words', 'code', 'out', 'error'),
    [
        (['--version'], 0, f'mmwsss, version {mmwsss.__version__}\n', ''),
        (['trian'], 2, '', "error: No such command 'trian'"),
        (['configs', 'no such config'], 1, '0 found\n', ''),
    ],
)
def test_it_runs_as_a_module(words, code, out, error):
    """As torchrun starts it; the name in messages is the command's all the same."""
    done = subprocess.run(
        [sys.executable, '-m', 'mmwsss', *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr.startswith(error)
    assert bool(done.stderr) == bool(error)


def test_importing_the_module_runs_nothing(monkeypatch, capsys):
    """Spawned workers import the main module again, by another name."""
    monkeypatch.setattr(sys, 'argv', ['mmwsss', 'trian'])
    names = runpy.run_module('mmwsss.__main__', run_name='__mp_main__')
    assert names['__name__'] == '__mp_main__'
    assert capsys.readouterr() == ('', '')
