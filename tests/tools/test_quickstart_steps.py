import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmwsss.apis import quickstart
from mmwsss.apis.quickstart import quickstart_stages
from mmwsss.apis.stages import Stage, available_cores, format_seconds, run_stages
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# Appends its arguments to the first one, which is also its output.
NOTE = 'import sys; open(sys.argv[1], "a").write(" ".join(sys.argv[2:]) + "\\n")'


def note(path, *words, **keywords):
    command = [sys.executable, '-c', NOTE, str(path), *words]
    return Stage(name=path.name, command=command, outputs=[path], **keywords)


def test_a_done_stage_is_skipped(tmp_path, capsys):
    stages = [note(tmp_path / 'one'), note(tmp_path / 'two')]
    record = tmp_path / 'stages.json'
    assert run_stages(stages, record) == {'one': 'done', 'two': 'done'}
    assert run_stages(stages, record) == {'one': 'skipped', 'two': 'skipped'}
    assert (tmp_path / 'one').read_text() == '\n'
    assert '[2/2] two: already done' in capsys.readouterr().out
    assert json.loads(record.read_text())['two']['finished']


def test_a_changed_input_runs_its_stage_and_the_later_ones(tmp_path):
    source = tmp_path / 'source'
    source.write_text('1')
    stages = [
        note(tmp_path / 'one'),
        note(tmp_path / 'two', inputs=[source]),
        note(tmp_path / 'three'),
    ]
    record = tmp_path / 'stages.json'
    run_stages(stages, record)
    source.write_text('2')
    outcome = run_stages(stages, record)
    assert outcome == {'one': 'skipped', 'two': 'done', 'three': 'done'}


def test_a_lost_output_is_made_again(tmp_path):
    stages = [note(tmp_path / 'one')]
    run_stages(stages, tmp_path / 'stages.json')
    (tmp_path / 'one').unlink()
    assert run_stages(stages, tmp_path / 'stages.json') == {'one': 'done'}


def test_a_failed_stage_resumes_and_a_changed_one_starts_clean(tmp_path):
    source, remains = tmp_path / 'source', tmp_path / 'remains'
    source.write_text('1')
    code = NOTE + '; sys.exit("--resume" not in sys.argv)'
    log = tmp_path / 'log'
    stage = Stage(
        name='train',
        command=[sys.executable, '-c', code, str(log)],
        inputs=[source],
        outputs=[log],
        resume=['--resume'],
        stale=[remains],
    )
    record = tmp_path / 'stages.json'
    with pytest.raises(InputError, match='"train" failed with exit code 1'):
        run_stages([stage], record)
    remains.write_text('')
    source.write_text('2')
    with pytest.raises(InputError):
        run_stages([stage], record)
    assert not remains.exists()
    remains.write_text('')
    assert run_stages([stage], record) == {'train': 'done'}
    assert remains.exists()
    assert log.read_text() == '\n\n--resume\n'


def test_a_stage_without_its_output_fails(tmp_path):
    stage = Stage(
        name='s', command=[sys.executable, '-c', ''], outputs=[tmp_path / 'x']
    )
    with pytest.raises(InputError, match='did not leave'):
        run_stages([stage], tmp_path / 'stages.json')


def test_a_broken_record_is_named(tmp_path):
    record = tmp_path / 'stages.json'
    record.write_text('[]')
    with pytest.raises(InputError, match=r'stages\.json is not a record'):
        run_stages([], record)


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on(tmp_path, signum):
    begun, record = tmp_path / 'begun', tmp_path / 'stages.json'
    slow = (
        'import pathlib, sys, time\n'
        f'pathlib.Path({str(begun)!r}).write_text("")\n'
        'time.sleep(0 if "--resume" in sys.argv else 20)\n'
    )
    driver = (
        'import sys\n'
        'from pathlib import Path\n'
        'from mmwsss.apis.cli import run_tool\n'
        'from mmwsss.apis.stages import Stage, run_stages\n'
        f'stage = Stage(name="slow", command=[sys.executable, "-c", {slow!r}],'
        ' resume=["--resume"])\n'
        f'run_tool(lambda: bool(not run_stages([stage], Path({str(record)!r}))))\n'
    )
    command = [sys.executable, '-c', driver]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    for _ in range(6000):
        if begun.exists():
            break
        time.sleep(0.05)
    # A terminal sends Ctrl-C to the whole group, an operator SIGTERM to the driver.
    send = os.killpg if signum == signal.SIGINT else os.kill
    send(process.pid, signum)
    _, message = process.communicate(timeout=600)
    assert process.returncode == (130 if signum == signal.SIGINT else 143)
    assert message.decode().strip().endswith('stopped')
    assert json.loads(record.read_text())['slow']['finished'] is None
    assert subprocess.run(command, env=environment, check=False).returncode == 0


def test_quickstart_stages_fit_together(tmp_path):
    stages = quickstart_stages(
        ROOT, work_dir=tmp_path / 'run', data_root=tmp_path / 'data'
    )
    assert len({stage.name for stage in stages}) == len(stages)
    tools = [Path(stage.command[1]).name for stage in stages]
    assert tools == ['make_synthetic.py', 'train.py', 'evaluate.py', 'report.py']
    assert stages[-1].outputs[0].name == 'report.html'


def test_available_cores_and_durations():
    assert 1 <= available_cores() <= os.cpu_count()
    texts = [format_seconds(s) for s in (7.6, 245, 7380)]
    assert texts == ['8 s', '4 min 05 s', '2 h 03 min']


SCRIPTS = [
    'tools/_environment.sh',
    'tools/quickstart.sh',
    'tools/run_tests.sh',
    'tools/run_tests_upstream.sh',
]


@pytest.mark.parametrize('script', [*SCRIPTS, '.ci/run'])
def test_scripts_parse(script):
    subprocess.run(['bash', '-n', ROOT / script], check=True)


def find_python(path, **environment):
    command = f'source {ROOT}/tools/_environment.sh; find_python'
    return subprocess.run(
        ['/bin/bash', '-c', command],
        env={'PATH': str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_python_is_one_sentence(tmp_path):
    # A shim that exists and does not start must not be taken.
    shim = tmp_path / 'python3.12'
    shim.write_text('#!/bin/sh\nexit 127\n')
    shim.chmod(0o755)
    done = find_python(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith('error: no Python 3.10 or newer')
    assert done.stderr.count('\n') == 1
    found = find_python(tmp_path, MMWSSS_PYTHON=sys.executable)
    assert found.stdout.strip() == sys.executable


def test_own_environment_is_used_as_it_is(tmp_path):
    (tmp_path / 'venv' / 'bin').mkdir(parents=True)
    (tmp_path / 'venv' / 'bin' / 'python').symlink_to(sys.executable)
    command = (
        f'set -euo pipefail; source {ROOT}/tools/_environment.sh; '
        f'make_environment {ROOT} onedl; echo "$VENV_PYTHON $PYTHONPATH"'
    )
    done = subprocess.run(
        ['bash', '-c', command],
        env={'PATH': os.environ['PATH'], 'MMWSSS_VENV': str(tmp_path / 'venv')},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / 'venv/bin/python'), str(ROOT)]
    assert list((tmp_path / 'venv').iterdir()) == [tmp_path / 'venv' / 'bin']


STUB = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp {stub} "$3/bin/python" ;;
  "-m pip install"*) exit "${{PIP_CODE:-0}}" ;;
  "-c import sys; sys.exit"*) exit "${{OLD_PYTHON:-0}}" ;;
esac
"""


class StandIn:
    """An interpreter that notes its calls; environments made with it have another."""

    def __init__(self, folder):
        self.file, self.log = folder / 'stub', folder / 'log'
        self.venv = folder / 'a venv'
        self.file.write_text(STUB.format(log=self.log, stub=self.file))
        self.file.chmod(0o755)
        self.log.touch()

    def bash(self, *arguments, **environment):
        """The process, and what it called the stand-in with as MMWSSS_PYTHON."""
        before = len(self.calls())
        done = subprocess.run(
            ['bash', *map(str, arguments)],
            env={
                'PATH': os.environ['PATH'],
                'MMWSSS_VENV': str(self.venv),
                'MMWSSS_PYTHON': str(self.file),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done, self.calls()[before:]

    def calls(self):
        return self.log.read_text().splitlines()


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


def of_pip_and_pytest(calls):
    return [c for c in calls if c.startswith(('-m pip install', '-m pytest'))]


ADVICE = (
    'error: pip could not install mmwsss[{}]; its messages are above, run the same '
)
NEWEST = ', or with MMWSSS_LOCK=0 for the newest versions of everything'


@pytest.mark.parametrize('newest', [{}, {'MMWSSS_LOCK': '0'}, {'OLD_PYTHON': '1'}])
def test_environment_is_made_once_and_again_after_a_failure(tmp_path, stand_in, newest):
    (tmp_path / 'setup.py').write_text('')
    (tmp_path / 'requirements').mkdir()
    (tmp_path / 'requirements/tests.txt').write_text('')

    def make(extras, pip_code='0'):
        command = (
            f'set -euo pipefail; source {ROOT}/tools/_environment.sh; '
            f'make_environment "{tmp_path}" {extras}'
        )
        done, _ = stand_in.bash('-c', command, PIP_CODE=pip_code, **newest)
        if done.returncode:
            # Other versions are offered where there are any that were not tried.
            said = ADVICE.format(extras) + 'command again to go on'
            assert done.stderr == f'{said}{"" if newest else NEWEST}\n'
        log = '\n'.join(stand_in.calls())
        return done.returncode, log.count('-m pip install'), log.count('-m venv')

    # What is needed, then the package itself; the newest of both are one call.
    each = 1 if newest else 2
    assert make('onedl,tests', pip_code='1') == (1, 1, 1)
    assert make('onedl,tests') == (0, 1 + each, 1)
    assert make('onedl,tests') == (0, 1 + each, 1)
    assert make('onedl') == (0, 1 + each, 1)
    (tmp_path / 'setup.py').write_text('changed')
    assert make('onedl') == (0, 1 + 2 * each, 1)
    assert make('onedl,tests') == (0, 1 + 3 * each, 1)
    (tmp_path / 'requirements/tests.txt').write_text('changed')
    assert make('onedl,tests') == (0, 1 + 4 * each, 1)
    calls = [line for line in stand_in.calls() if ' install ' in line]
    locked = [
        f'--require-hashes --requirement {tmp_path}/requirements/tests.txt' in c
        for c in calls
    ]
    if newest:
        assert not any(locked)
        assert calls[-1].endswith(f'--editable {tmp_path}[onedl,tests]')
    else:
        assert locked[-2:] == [True, False]
        assert calls[-1].endswith(f'--no-deps --editable {tmp_path}')


def test_upstream_is_built_once_with_torch_in_place(stand_in):
    """Built in isolation, mmcv finds no torch and leaves its operators out."""

    def run(pip_code, **environment):
        script = ROOT / 'tools/run_tests_upstream.sh'
        done, calls = stand_in.bash(
            script, '-k', 'resume', PIP_CODE=pip_code, **environment
        )
        return done, of_pip_and_pytest(calls)

    for environment in ({}, {'MMWSSS_LOCK': '0'}):
        failed, calls = run('1', **environment)
        assert failed.returncode == 1
        # There are no versions but these.
        said = ADVICE.format('openmmlab,tests') + 'command again to go on\n'
        assert failed.stderr.endswith(said)
        assert len(calls) == 1
    _, calls = run('0')
    assert len(calls) == 4
    assert calls[0].endswith(f'--requirement {ROOT}/requirements/upstream.txt')
    assert '--no-build-isolation' in calls[1]
    assert calls[1].endswith(f'--requirement {ROOT}/requirements/upstream_mmcv.txt')
    assert all('--require-hashes' in call for call in calls[:2])
    assert calls[2].endswith(f'--no-deps --editable {ROOT}')
    assert calls[3].endswith('-k resume')
    assert run('0')[1] == calls[3:]
    # Nor is anything built again in their search.
    assert run('0', MMWSSS_LOCK='0')[1] == calls[3:]


@pytest.mark.parametrize(
    ('names', 'extras'),
    [
        (['quickstart'], ['onedl']),
        (['tests'], ['onedl', 'tests']),
        (['upstream', 'upstream_mmcv'], ['openmmlab', 'tests']),
    ],
)
def test_what_setup_asks_for_is_pinned_with_hashes(names, extras, monkeypatch):
    text = '\n'.join((ROOT / f'requirements/{n}.txt').read_text() for n in names)
    # A version each, or one for each kind of Python, and at least one hash.
    entries = re.split(r'\n(?=\S)', text.strip())
    pins = {}
    for entry in entries:
        match = re.match(r'([a-z0-9._-]+)==(\S+)', entry)
        assert match, entry
        assert '--hash=sha256:' in entry, entry
        pins.setdefault(match[1], []).append(match[2])
    asked = {}
    monkeypatch.setattr('setuptools.setup', lambda **keywords: asked.update(keywords))
    monkeypatch.chdir(ROOT)
    runpy.run_path('setup.py')
    wanted = [*asked['install_requires']]
    for extra in extras:
        wanted += asked['extras_require'][extra]
    for requirement in map(Requirement, wanted):
        versions = pins[canonicalize_name(requirement.name)]
        assert all(map(requirement.specifier.contains, versions)), requirement


# Writes what the real tool of its name would, and that it was called.
STAND_IN = """
import os, pathlib, sys
name, *words = sys.argv
with open(os.environ['CALLS'], 'a') as stream:
    stream.write(' '.join([pathlib.Path(name).stem, *words]) + '\\n')
out = {'make_synthetic.py': [words[0], 'image_labels.json'],
       'train.py': [words[words.index('--work-dir') + 1] if '--work-dir' in words
                    else '', 'last_checkpoint'],
       'evaluate.py': [words[-1], 'metrics.json'],
       'report.py': [words[0], 'report.html']}[pathlib.Path(name).name]
path = pathlib.Path(*out)
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text('')
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository whose tools are stand-ins, and the calls of them."""
    root = tmp_path / 'clone'
    for folder in (
        *('tools', 'configs/_base_', 'mmwsss/apis', 'mmwsss/datasets/tiny_towers'),
        *('mmwsss/evaluation', 'mmwsss/visualization'),
    ):
        (root / folder).mkdir(parents=True)
    for name in ('make_synthetic', 'train', 'evaluate', 'report'):
        (root / f'tools/{name}.py').write_text(STAND_IN)
    for name in ('mmwsss/datasets/synthetic.py', 'mmwsss/apis/evaluate.py'):
        (root / name).write_text('')
    for name in ('clipdino_refine_synth', 'other'):
        path = root / f'configs/{name}.py'
        path.write_text(f"data_root = 'data/of_{name}'\n")
    monkeypatch.setattr(quickstart, '__file__', str(root / 'mmwsss/apis/quickstart.py'))
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    monkeypatch.chdir(tmp_path)
    return root


def start(monkeypatch, *words):
    """Calls of the tools by one quickstart."""
    Path('calls').write_text('')
    monkeypatch.setattr(sys, 'argv', ['quickstart.py', *words])
    assert quickstart.main() == 0
    return Path('calls').read_text().splitlines()


@pytest.mark.mm
def test_the_quickstart_draws_trains_scores_reports(clone, monkeypatch, capsys):
    config, out = clone / 'configs/clipdino_refine_synth.py', 'work_dirs/quickstart'
    assert start(monkeypatch) == [
        # Where the config looks for its photos.
        'make_synthetic data/of_clipdino_refine_synth',
        f'train {config} --work-dir {out}',
        f'evaluate {config} {out} --out {out}/evaluation',
        f'report {out}/evaluation --run {out}',
    ]
    said = capsys.readouterr().out
    page = Path(out, 'evaluation/report.html').resolve()
    assert said.endswith(f'Open the report in a browser:\n  {page}\n')
    assert page.is_file()

    assert start(monkeypatch) == []
    page.unlink()
    assert start(monkeypatch) == [f'report {out}/evaluation --run {out}']

    other = start(monkeypatch, '--config', 'configs/other.py', '--work-dir', 'mine')
    assert other[0] == 'make_synthetic data/of_other'
    assert other[1] == f'train {clone / "configs/other.py"} --work-dir mine'
    assert Path('mine/evaluation/report.html').is_file()


@pytest.mark.mm
def test_a_quickstart_that_cannot_be_is_one_sentence(clone, monkeypatch):
    with pytest.raises(InputError, match='quickstart runs from a clone'):
        start(monkeypatch, '--config', 'configs/none.py')
    (clone / 'configs/other.py').write_text('model = dict()\n')
    with pytest.raises(InputError, match=r'other\.py names no data_root'):
        start(monkeypatch, '--config', 'configs/other.py')
    assert Path('calls').read_text() == ''


@pytest.mark.mm
def test_the_quickstart_draws_where_its_config_reads():
    """Or it would train on photos that are not there."""
    from mmengine.config import Config

    config = Config.fromfile(str(ROOT / quickstart.CONFIG))
    read = config.train_dataloader.dataset.data_root
    assert str(quickstart._data_root(ROOT / quickstart.CONFIG)) == read
