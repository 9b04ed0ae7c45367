"""A CAM network without a backbone: how red and how blue a photo is.

What it answers is known beforehand, it is built at once, and it can be told to take
its time, so that a process can be killed in the middle of its work.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import CLASSES, ROOT, draw

from mmwsss.apis.cli import find_sentence
from mmwsss.functional import add_background, normalize_cams
from mmwsss.models.cam_networks.base import CAMNetwork, PhotoCAMs
from mmwsss.registry import MODELS

NUM_PHOTOS = 8


@MODELS.register_module()
class FakeCAMNetwork(CAMNetwork):
    """Kinds 'cam' and, with a background of its own, 'own'."""

    kinds = ('cam', 'own')

    def __init__(self, *, delay_s: float = 0.0, broken: bool = False) -> None:
        super().__init__(num_classes=len(CLASSES), test_flip=False)
        self.gain = torch.nn.Parameter(torch.tensor(1.0))
        self.delay_s = delay_s
        self.broken = broken

    @property
    def default_kind(self) -> str:
        return 'cam'

    def scale_maps(self, image, image_label, kinds):
        time.sleep(self.delay_s)
        red, _, blue = image.split(1, 1)
        maps = torch.cat([red - blue, blue - red], 1).relu() * self.gain
        return {kind: maps / (0.0 if self.broken else 1.0) for kind in kinds}

    def finish_maps(self, kind, total, image_label):
        cams = normalize_cams(total) if not self.broken else total * float('nan')
        cams = cams * image_label[:, :, None, None]
        if kind == 'cam':
            return PhotoCAMs(cams=cams[0])
        scores = add_background(cams, power=3)[0]
        return PhotoCAMs(cams=scores[1:], scores=scores)


CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(
    imports=['mmwsss.models', 'mmwsss.datasets', 'fake_cams'],
    allow_failed_imports=False)
model = dict(type='mmwsss.FakeCAMNetwork', delay_s={delay_s})
train_dataloader = dict(dataset=dict(
    type='mmwsss.ImageLabelDataset', data_root={root!r}, ann_file='train.txt',
    image_labels='image_labels.json', data_prefix=dict(img_path='JPEGImages'),
    pipeline=[dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.PackWSSSInputs')]))
"""


def write(folder: Path, *, delay_s: float = 0.0) -> tuple[Path, Path]:
    """Photos, a config and a checkpoint; returns the last two."""
    root = draw(folder / 'data', num_photos=NUM_PHOTOS)
    config = folder / 'fake.py'
    config.write_text(CONFIG.format(root=str(root), delay_s=delay_s))
    return config, write_checkpoint(folder / 'fake.pth')


def write_checkpoint(path: Path, *, gain: float = 1.0) -> Path:
    torch.save({'state_dict': {'gain': torch.tensor(gain)}, 'meta': {}}, path)
    return path


def environment() -> dict:
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}


def command(tool: str, *arguments) -> list[str]:
    return [
        sys.executable,
        '-W',
        'ignore',
        str(ROOT / 'tools' / tool),
        *map(str, arguments),
    ]


def run(tool: str, *arguments) -> subprocess.CompletedProcess:
    """Run a tool to its end."""
    return subprocess.run(
        command(tool, *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )


def sentence(done: subprocess.CompletedProcess) -> str:
    """The one sentence of a tool that refused its input."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, done.stderr
    assert 'Traceback' not in done.stderr
    return lines[0].removeprefix('error: ')


def refusal(command, monkeypatch, *arguments) -> str:
    """The sentence of a command, run in this process to save its start."""
    monkeypatch.setattr(sys, 'argv', ['tool.py', *map(str, arguments)])
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        command()
    found = find_sentence(caught.value)
    assert found is not None, caught.value
    assert '\n' not in found
    return found


def relabel(data_root: Path, image_id: str, names: list[str]) -> None:
    """Change one photo's image label."""
    path = data_root / 'image_labels.json'
    content = json.loads(path.read_text())
    content['labels'][image_id] = names
    path.write_text(json.dumps(content))


def contents(folder: Path) -> dict[str, bytes]:
    """Every finished file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not path.name.startswith('.')
    }
