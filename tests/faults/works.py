"""What is killed: trainings and tools on drawn photos, each of a second or two.

A work says how it is started, also again, and what it leaves behind: ``outcome`` is
what must be the same after any number of kills, ``saved`` what must never get less.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import fake_cams
import fake_inference
import numpy as np
import resumable_run
import tiny_run
import torch

import mmwsss.command
from mmwsss.apis.cli import run_tool
from mmwsss.apis.inferencer import WSSSInferencer
from mmwsss.apis.label import MANIFEST, read_manifest
from mmwsss.apis.make_cams import make_cams_command
from mmwsss.apis.make_pseudo_labels import make_pseudo_labels_command
from mmwsss.apis.train import train_command
from mmwsss.checkpoints import newest_whole_checkpoint, read_checkpoint
from mmwsss.files import is_whole, read_json


def digest(content: object) -> str:
    """Of tensors and plain values, bit by bit."""
    if isinstance(content, torch.Tensor):
        array = content.detach().cpu().contiguous()
        raw = array.reshape(-1).view(torch.uint8).numpy().tobytes()
        text = f'{array.dtype} {tuple(array.shape)}'.encode() + raw
    elif isinstance(content, np.ndarray):
        text = f'{content.dtype} {content.shape}'.encode() + content.tobytes()
    elif isinstance(content, dict):
        text = repr([(k, digest(v)) for k, v in content.items()]).encode()
    elif isinstance(content, list | tuple):
        text = repr([digest(part) for part in content]).encode()
    else:
        text = repr(content).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def file_digests(folder: Path) -> dict[str, str]:
    """All finished files below a folder, by their path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not path.name.startswith('.')
    }


def leftovers(folder: Path) -> list[str]:
    """Files that a process had begun to write."""
    found = [*folder.rglob('.*.tmp'), *folder.rglob('.saving-*')]
    return sorted(str(path.relative_to(folder)) for path in found)


class Work:
    """Something that can be killed and started again.

    Args:
        folder: Receives the inputs, and nothing else.
    """

    name = ''

    def __init__(self, folder: Path) -> None:
        self.inputs = folder
        folder.mkdir(parents=True)

    def start(self, out: Path) -> None:
        """In a child: to the end, from wherever it is."""
        raise NotImplementedError

    def outcome(self, out: Path) -> dict[str, str]:
        """Digests of what an end leaves behind."""
        raise NotImplementedError

    def saved(self, out: Path) -> set[str]:
        """What is finished; raises AssertionError where something is torn."""
        raise NotImplementedError


def _run_command(command, *arguments: object) -> None:
    sys.argv = ['tool.py', *map(str, arguments)]
    run_tool(command)


# -------------------------------------------------------------------------- trainings
class _Training(Work):
    parts = ('state_dict', 'optimizer', 'param_schedulers', 'random_states', 'position')

    def outcome(self, out: Path) -> dict[str, str]:
        found, passed = newest_whole_checkpoint(out)
        assert not passed, passed
        content = read_checkpoint(found)
        scalars = content['message_hub']['log_scalars']
        losses = {k: h.data[0] for k, h in scalars.items() if not k.endswith('time')}
        parts = {k: digest(content[k]) for k in self.parts if k in content}
        names = sorted(p.name for p in out.glob('*.pth*'))
        return {
            **parts,
            'iterations': str(content['meta']['iter']),
            'curves': digest(losses),
            'checkpoints': ' '.join(names),
        }

    def saved(self, out: Path) -> set[str]:
        found, passed = newest_whole_checkpoint(out)
        assert not passed, f'torn: {[p.name for p in passed]}'
        if found is None:
            return set()
        done = read_checkpoint(found)['meta']['iter']
        return {f'iteration {number}' for number in range(1, done + 1)}


class Segmentor(_Training):
    """tools/train.py on a segmentor with gate, history, teacher and dropout."""

    name, num_workers = 'train', 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        data = tiny_run.draw(folder / 'data')
        content = tiny_run.gated_config(data, num_workers=self.num_workers)
        content['default_hooks']['checkpoint']['max_keep_ckpts'] = 2
        content['log_level'] = 'ERROR'
        self.config = tiny_run.write_config(folder / 'config.py', content)

    def start(self, out: Path, *options: str) -> None:
        given = ('--work-dir', out, '--resume', *options)
        _run_command(train_command, self.config, *given)


class Validated(_Training):
    """A training with averaged weights, schedules, validations and a best one."""

    name = 'train, validating'
    parts = (*_Training.parts, 'ema_state_dict')

    def start(self, out: Path) -> None:
        given = dict(save_best='score', rule='greater', max_keep_ckpts=2, interval=2)
        # Its data set is no part of the package, so it is no config for the tool.
        run_tool(lambda: _train_validated(out, given))


def _train_validated(out: Path, given: dict) -> None:
    change = {'randomness.seed': 5}
    resumable_run.train(out, resume=True, change=change, seed=5, **given)


# ----------------------------------------------------------------------------- stores
class _Files(Work):
    """One file or more for each photo."""

    def outcome(self, out: Path) -> dict[str, str]:
        return file_digests(out)

    def saved(self, out: Path) -> set[str]:
        files = [
            path
            for path in out.rglob('*')
            if path.suffix in ('.npz', '.png') and not path.name.startswith('.')
        ]
        torn = [path.name for path in files if not is_whole(path)]
        assert not torn, f'torn: {torn}'
        record = out / 'made_from.json'
        assert not record.exists() or read_json(record)
        return {str(path.relative_to(out)) for path in files}


class CAMs(_Files):
    """tools/make_cams.py."""

    name, options = 'make_cams', ()
    # Before each scale of a photo.
    delay_s = 0.03

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        written = fake_cams.write(folder, delay_s=self.delay_s)
        self.config, self.checkpoint = written

    def start(self, out: Path, *options: str) -> None:
        given = ('--out', out, *self.options, *options)
        _run_command(make_cams_command, self.config, self.checkpoint, *given)


class SharedCAMs(CAMs):
    """The same in two worker processes."""

    name, options = 'make_cams --jobs 2', ('--jobs', 2)


class Labels(_Files):
    """tools/make_pseudo_labels.py from a store, with a refiner and reliability."""

    name = 'make_pseudo_labels'

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config, self.checkpoint = fake_cams.write(folder)

    def start(self, out: Path) -> None:
        _run_command(
            make_pseudo_labels_command,
            *(self.config, '--cams', self.store(), '--out', out, '--reliability'),
            *('--background', '0.3', '--refine', 'PAMR(num_iters=4)'),
        )

    def store(self) -> Path:
        """Made by the first that asks."""
        store = self.inputs / 'cams'
        if not (store / 'made_from.json').exists():
            sys.argv = ['tool.py', str(self.config), str(self.checkpoint)]
            sys.argv += ['--out', str(store)]
            make_cams_command()
        return store


class Masks(_Files):
    """``mmwsss label`` on a folder of photos: masks, overlays and a manifest."""

    name = 'label'
    # Before each photo.
    delay_s = 0.02

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root, self.config, self.checkpoint = fake_inference.write(folder)

    def start(self, out: Path) -> None:
        infer = WSSSInferencer.infer

        def slowly(*given, **options):
            time.sleep(self.delay_s)
            return infer(*given, **options)

        WSSSInferencer.infer = slowly
        sys.argv = ['mmwsss', 'label', str(self.config), str(self.checkpoint)]
        sys.argv += [str(self.root / 'JPEGImages'), '--out', str(out)]
        sys.argv += ['--tags', str(self.root / 'image_labels.json')]
        mmwsss.command.main()

    def outcome(self, out: Path) -> dict[str, str]:
        found = file_digests(out)
        # Tells of the starts, and so of the kills.
        del found['log.jsonl']
        return found

    def saved(self, out: Path) -> set[str]:
        if (out / MANIFEST).exists():
            for record in read_manifest(out):
                for path in (out / 'SegmentationClass').glob(f'{record.id}.png'):
                    assert record.state == 'ok', path
                assert (out / f'SegmentationClass/{record.id}.png').exists(), record.id
        return super().saved(out)


# ----------------------------------------------------------------------------- recipe
_STAGE = """
import hashlib, json, os, pathlib, sys, time
from mmwsss.apis.cli import run_tool
from mmwsss.files import write_text, write_json

what, out, *sources = [w for w in sys.argv[1:] if w != '--resume']
out = pathlib.Path(out)
seed = ''.join(pathlib.Path(s).read_text() for s in sources)

def grow():
    state = out / 'state.json'
    step, value = json.loads(state.read_text()) if state.exists() else (0, seed)
    if state.exists() and '--resume' not in sys.argv:
        sys.exit('remains of another start')
    while step < 5:
        time.sleep(0.02)
        value = hashlib.sha256(value.encode()).hexdigest()
        step += 1
        write_json(state, [step, value])
    write_text(out / 'final.txt', value)

def files():
    for number in range(6):
        path = out / f'{number}.txt'
        if not path.exists():
            time.sleep(0.01)
            write_text(path, hashlib.sha256(f'{seed}{number}'.encode()).hexdigest())
    write_text(out / 'all.txt', 'done')

def score():
    texts = ''.join(p.read_text() for p in sorted(out.parent.glob('labels/*.txt')))
    value = int(hashlib.sha256((texts + seed).encode()).hexdigest()[:6], 16) / 1e5
    write_json(out / 'metrics.json', {'miou': value})

run_tool(globals()[what])
"""
_RECIPE = """
work_dir = {work_dir!r}
seeds = (0, 1)
stages = [
    dict(name='train', command=['stage.py', 'grow', '{{run}}/train', {source!r}],
         inputs=[{source!r}], outputs=['{{run}}/train/final.txt'], resume=['--resume'],
         stale=['{{run}}/train']),
    dict(name='label', command=['stage.py', 'files', '{{run}}/labels',
         '{{run}}/train/final.txt'], outputs=['{{run}}/labels/all.txt']),
    dict(name='score', command=['stage.py', 'score', '{{run}}/score',
         '{{run}}/train/final.txt'], outputs=['{{run}}/score/metrics.json']),
]
columns = {{'mIoU': ('{{run}}/score/metrics.json', 'miou')}}
"""


class RunRecipe(Work):
    """Two runs of three stages, one after the other, and the summary.

    The stages are stand-ins, each a process of its own: one goes on from its state,
    one makes what is missing.
    """

    name = 'run_recipe'

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / 'stage.py').write_text(_STAGE)
        (folder / 'source.txt').write_text('1')
        # run_all starts this one for each run.
        (folder / 'tools').mkdir()
        (folder / 'tools/run_recipe.py').write_text(_ONE_RUN)

    def start(self, out: Path) -> None:
        os.environ.update(tiny_run.environment())
        recipe = self.inputs / f'{out.name}.py'
        source = str(self.inputs / 'source.txt')
        recipe.write_text(_RECIPE.format(work_dir=str(out), source=source))
        run_tool(lambda: _recipe(recipe, self.inputs))

    def outcome(self, out: Path) -> dict[str, str]:
        files = file_digests(out)
        summary = json.loads((out / 'summary.json').read_text())
        states = {
            f'{run} {stage}': entry['state']
            for run, stages in summary['stages'].items()
            for stage, entry in stages.items()
        }
        told = ('summary', 'log.txt', 'stages.json', 'config.py')
        kept = {k: v for k, v in files.items() if not Path(k).name.startswith(told)}
        return {**kept, **states, 'table': json.dumps(summary['rows'])}

    def saved(self, out: Path) -> set[str]:
        done = set()
        for record in out.glob('*/stages.json'):
            for stage, entry in json.loads(record.read_text()).items():
                if entry['state'] == 'done':
                    done.add(f'{record.parent.name} {stage}')
        for name in ('score/metrics.json', 'train/state.json'):
            for path in out.glob(f'*/{name}'):
                json.loads(path.read_text())
        return done


_ONE_RUN = """
import sys
from pathlib import Path
from mmwsss.apis.cli import run_tool
from mmwsss.apis.recipe import load_recipe
from mmwsss.apis.recipe_runs import run_one

root = Path(__file__).resolve().parents[1]
recipe = load_recipe(Path(sys.argv[1]), root=root)
run_tool(lambda: run_one(recipe, sys.argv[-1], root=root))
"""


def _recipe(path: Path, root: Path) -> None:
    from mmwsss.apis.recipe import load_recipe
    from mmwsss.apis.recipe_runs import run_one
    from mmwsss.apis.recipe_summary import summarize

    recipe = load_recipe(path, root=root)
    # In this process, so that the kills fall into the runs.
    for run in recipe.runs():
        run_one(recipe, run, root=root)
    summarize(recipe, root=root)


WORKS = (Segmentor, Validated, CAMs, SharedCAMs, Labels, Masks, RunRecipe)
