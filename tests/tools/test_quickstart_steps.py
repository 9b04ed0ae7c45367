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


@pytest.mark.parametrize('newest', [{}, {'MMWSSS_LOCK': '0'}, {'OLD_PYTHON': '1'}])
def test_environment_is_made_once_and_again_after_a_failure(tmp_path, newest):
    stub, log, venv = tmp_path / 'stub', tmp_path / 'log', tmp_path / 'a venv'
    stub.write_text(STUB.format(log=log, stub=stub))
    stub.chmod(0o755)
    (tmp_path / 'setup.py').write_text('')
    (tmp_path / 'requirements').mkdir()
    (tmp_path / 'requirements/tests.txt').write_text('')

    def make(extras, pip_code='0'):
        command = (
            f'set -euo pipefail; source {ROOT}/tools/_environment.sh; '
            f'make_environment "{tmp_path}" {extras}'
        )
        environment = {
            'PATH': os.environ['PATH'],
            'MMWSSS_VENV': str(venv),
            'MMWSSS_PYTHON': str(stub),
            'PIP_CODE': pip_code,
            **newest,
        }
        done = subprocess.run(
            ['bash', '-c', command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        installs = log.read_text().count('-m pip install')
        return done.returncode, installs, log.read_text().count('-m venv')

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
    calls = [line for line in log.read_text().splitlines() if ' install ' in line]
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


def test_upstream_is_built_once_with_torch_in_place(tmp_path):
    """Built in isolation, mmcv finds no torch and leaves its operators out."""
    stub, log, venv = tmp_path / 'stub', tmp_path / 'log', tmp_path / 'venv'
    stub.write_text(STUB.format(log=log, stub=stub))
    stub.chmod(0o755)

    def run(pip_code):
        environment = {
            'PATH': os.environ['PATH'],
            'MMWSSS_VENV': str(venv),
            'MMWSSS_PYTHON': str(stub),
            'PIP_CODE': pip_code,
        }
        done = subprocess.run(
            ['bash', ROOT / 'tools/run_tests_upstream.sh', '-k', 'resume'],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        calls = log.read_text().splitlines()
        log.write_text('')
        return done, [c for c in calls if c.startswith(('-m pip install', '-m pytest'))]

    failed, calls = run('1')
    assert failed.returncode == 1
    assert 'error: pip could not install mmwsss[openmmlab,tests]' in failed.stderr
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
