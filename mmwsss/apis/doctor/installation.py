"""Findings about the installation: packages, GPU, threads, disk, weights."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from packaging.version import Version

from mmwsss.apis.doctor.findings import Finding
from mmwsss.apis.pretrained_weights import described, how_to_give, is_known
from mmwsss.apis.stages import available_cores
from mmwsss.compat import INSTALL, check_mm_packages

# Two distributions that install the same import name.
_STACKS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
_OTHERS = ('torchvision', 'numpy', 'pillow', 'opencv-python', 'open_clip_torch')
_GB = 1 << 30
_LITTLE_DISK_GB = 5
_LITTLE_SHARED_GB = 1


def installed_versions() -> dict[str, str]:
    """Distribution -> version, of what mmwsss works with."""
    names = [name for pair in _STACKS.values() for name in pair]
    found = {'python': platform.python_version(), 'torch': torch.__version__}
    for name in (*names, 'mmcv-lite', *_OTHERS):
        if installed := _version(name):
            found[name] = installed
    return found


def installation_findings(
    config: Mapping | None = None, *, folder: Path = Path()
) -> list[Finding]:
    """What is wrong with this machine.

    Args:
        config: Looked through for weights, refiners and workers.
        folder: Where results will be written.
    """
    return [
        *_packages(),
        *_gpu(),
        *_threads(config or {}),
        *_disk(folder),
        *_crf(config or {}),
        *(f for path, part in _parts(config or {}) for f in _weights(path, part)),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ''


# ---------------------------------------------------------------------------- packages
def _packages() -> list[Finding]:
    findings = _two_stacks() + _known_clashes()
    try:
        check_mm_packages()
        importlib.import_module('mmwsss.models')
    except Exception as error:
        # Packages that do not fit raise whatever they happen to trip over.
        findings.append(
            Finding(
                code='packages',
                severity='error',
                what=f'mmwsss.models cannot be imported: {str(error).splitlines()[0]}'
                if str(error)
                else f'mmwsss.models cannot be imported: {error!r}',
                meaning='Nothing can be trained or labelled.',
                advice=f'Run: {INSTALL}',
            )
        )
    return findings


def _two_stacks() -> list[Finding]:
    both = [
        f'{one} {_version(one)} and {other} {_version(other)}'
        for one, other in _STACKS.values()
        if _version(one) and _version(other)
    ]
    return Finding.of(
        both,
        code='two-stacks',
        severity='error',
        what='packages installed from two distributions: {n}',
        meaning='Both write the same files, so each import is a mixture of the two.',
        advice=f'Remove both (pip uninstall), then install one stack again: {INSTALL}',
    )


def _known_clashes() -> list[Finding]:
    clashes = []
    mmcv = _version('mmcv') or _version('mmcv-lite')
    upstream = _version('mmsegmentation')
    if upstream and mmcv and Version(mmcv) >= Version('2.2.0'):
        clashes.append(f'mmsegmentation {upstream} refuses mmcv {mmcv}; it needs <2.2')
    if upstream and _version('mmcv-lite'):
        clashes.append(f'mmsegmentation {upstream} needs full mmcv, not mmcv-lite')
    setuptools = _version('setuptools')
    old_engine = _version('mmengine')
    if old_engine and setuptools and Version(setuptools) >= Version('82'):
        clashes.append(
            f'mmengine {old_engine} needs pkg_resources, which setuptools '
            f'{setuptools} has no more; pip install "setuptools<82"'
        )
    return Finding.of(
        clashes,
        code='package-clash',
        severity='error',
        what='packages that do not go together: {n}',
        meaning='Something will fail at import or in the middle of a run.',
        advice=f'Follow the sentence, or take the other stack: {INSTALL}',
    )


# ----------------------------------------------------------------------- the hardware
def _gpu() -> list[Finding]:
    if torch.cuda.is_available():
        return []
    driver = shutil.which('nvidia-smi') is not None
    what, advice = 'there is no GPU', 'Take one for training with ViTs, if you can.'
    if driver:
        built = torch.version.cuda
        what = (
            f'torch {torch.__version__} does not see the GPU of this machine '
            f'(built for {f"CUDA {built}" if built else "the CPU alone"})'
        )
        advice = (
            'Install the torch build for the driver that nvidia-smi shows '
            '(https://pytorch.org/get-started/locally), and check '
            'CUDA_VISIBLE_DEVICES.'
        )
    return [
        Finding(
            code='gpu-none',
            severity='warning' if driver else 'note',
            what=what,
            meaning='Small networks train on a CPU in minutes; frozen CLIP and DINOv2 '
            'towers at full size take days there.',
            advice=advice,
        )
    ]


def _threads(config: Mapping) -> list[Finding]:
    cores, findings = available_cores(), []
    threads = torch.get_num_threads()
    if threads > cores:
        findings.append(
            Finding(
                code='threads',
                severity='warning',
                what=f'torch takes {threads} threads, but there are {cores} cores',
                meaning='Threads wait for each other: small tensor operations get 10 '
                'to 100 times slower.',
                advice=f'export OMP_NUM_THREADS={cores}',
            )
        )
    workers = max(
        (
            (config.get(f'{name}_dataloader') or {}).get('num_workers', 0)
            for name in ('train', 'train_eval', 'val', 'test')
        ),
        default=0,
    )
    if workers > cores:
        findings.append(
            Finding(
                code='workers',
                severity='warning',
                what=f'a data loader takes {workers} workers, but there are {cores} '
                'cores',
                meaning='Workers take cores from each other and from the network.',
                advice='--cfg-options train_dataloader.num_workers='
                f'{max(cores - 1, 1)}',
            )
        )
    return findings + _shared_memory(workers)


def _shared_memory(workers: int) -> list[Finding]:
    place = Path('/dev/shm')
    if not workers or not place.is_dir():
        return []
    free = shutil.disk_usage(place).total / _GB
    if free >= _LITTLE_SHARED_GB:
        return []
    return [
        Finding(
            code='shared-memory',
            severity='warning',
            what=f'/dev/shm has {free:.2f} GB',
            meaning='Workers hand batches over through it; a full one kills them with '
            '"bus error".',
            advice='docker run --shm-size=8g, or num_workers=0.',
        )
    ]


def _disk(folder: Path) -> list[Finding]:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    if free >= _LITTLE_DISK_GB:
        return []
    return [
        Finding(
            code='disk',
            severity='error' if free < 1 else 'warning',
            what=f'{free:.1f} GB are free at {folder}',
            meaning='Checkpoints take 0.1 to 2 GB each, CAMs of 10,000 photos some '
            'GB; a full disk stops a run.',
            advice='Make room, or write elsewhere (--work-dir, --out).',
        )
    ]


def _crf(config: Mapping) -> list[Finding]:
    if importlib.util.find_spec('pydensecrf') is not None:
        return []
    used = any(_type(part) == 'DenseCRF' for _, part in _parts(config))
    return [
        Finding(
            code='pydensecrf',
            severity='error' if used else 'note',
            what='pydensecrf is not installed',
            meaning='The config has the refiner DenseCRF, which needs it.'
            if used
            else 'The refiner DenseCRF cannot be used; PAMR and PAR need nothing.',
            advice="pip install 'mmwsss[crf]' (it can be built for Python up to 3.12)",
        )
    ]


# ----------------------------------------------------------------------------- weights
def _parts(content: object, path: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict with a type in a config, with its place."""
    if isinstance(content, Mapping):
        if 'type' in content:
            yield path, content
        for key, value in content.items():
            yield from _parts(value, f'{path}.{key}' if path else str(key))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from _parts(value, f'{path}[{number}]')


def _type(part: Mapping) -> str:
    return str(part.get('type', '')).rpartition('.')[2]


def _weights(path: str, part: Mapping) -> Iterator[Finding]:
    for key in ('weights', 'checkpoint'):
        value = part.get(key)
        if not isinstance(value, str):
            continue
        place = Path(value).expanduser()
        if place.exists():
            continue
        if value.startswith(('http://', 'https://')):
            if not (_hub_folder() / value.rpartition('/')[2]).is_file():
                yield _to_download(f'{path}.{key}', value, f'curl -LO {value}')
        elif _type(part) == 'FrozenCLIP' and not _looks_like_file(value):
            model = str(part.get('model', '')).replace('/', '-')
            yield from _clip_weights(f'{path}.{key}', model, value)
        elif _type(part) == 'FrozenDINOv2' and value == 'download':
            # Meta's names: dinov2_vits14_pretrain.pth, dinov2_vits14_reg4_...
            file = f'dinov2_vit{str(part.get("arch", "small"))[:1]}14*_pretrain.pth'
            if not any(_hub_folder().glob(file)):
                yield _to_download(
                    f'{path}.{key}',
                    file,
                    'get it from https://github.com/facebookresearch/dinov2',
                )
        else:
            yield _missing(f'{path}.{key}', place, value)


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / 'checkpoints'


def _looks_like_file(value: str) -> bool:
    return '/' in value or Path(value).suffix != ''


def _missing(where: str, place: Path, file: str) -> Finding:
    what = f'the weights {place.absolute()} ({where}) do not exist'
    advice = 'Correct the path, or fetch the file as the comment of the config says.'
    if is_known(file):
        # As --cfg-options writes an entry of a list.
        key = where.replace('[', '.').replace(']', '')
        what = f'the weights {described(file)} of {where} do not exist'
        advice = f'Give a file or a URL of yours: {how_to_give({file: [key]})}.'
    return Finding(
        code='weights-missing',
        severity='error',
        what=what,
        meaning='Training stops before its first step.',
        advice=advice,
    )


def _to_download(where: str, name: str, how: str) -> Finding:
    return Finding(
        code='weights-to-download',
        severity='note',
        what=f'the weights {name} ({where}) are not on this machine yet',
        meaning='The first run fetches them; without a network it stops.',
        advice=f'On a connected machine: {how}, then give the file as {where}.',
    )


def _clip_weights(where: str, model: str, tag: str) -> Iterator[Finding]:
    if importlib.util.find_spec('open_clip') is None:
        yield Finding(
            code='open-clip',
            severity='error',
            what='open_clip is not installed',
            meaning=f'{where} needs it.',
            advice='pip install open_clip_torch',
        )
        return
    import open_clip

    known = open_clip.get_pretrained_cfg(model, tag)
    if not known:
        tags = ', '.join(open_clip.list_pretrained_tags_by_model(model)) or 'none'
        yield Finding(
            code='weights-missing',
            severity='error',
            what=f'{tag!r} ({where}) is neither a file nor a tag of {model}',
            meaning='Training stops before its first step.',
            advice=f'Tags of this model: {tags}.',
        )
    elif not _is_cached(known):
        how = (
            f'python -c "import open_clip; print(open_clip.download_pretrained('
            f"open_clip.get_pretrained_cfg('{model}', '{tag}')))\""
        )
        yield _to_download(where, f'{model} {tag}', how)


def _is_cached(known: Mapping) -> bool:
    """Whether open_clip would find a tag's file without a network."""
    url, hub = known.get('url') or '', (known.get('hf_hub') or '').strip('/')
    if not hub or importlib.util.find_spec('huggingface_hub') is None:
        plain = Path('~/.cache/clip').expanduser() / url.rpartition('/')[2]
        return bool(url) and plain.is_file()
    home = os.environ.get('HF_HOME') or '~/.cache/huggingface'
    cache = os.environ.get('HF_HUB_CACHE') or f'{home}/hub'
    folder = f'models--{"--".join(hub.split("/")[:2])}'
    return any((Path(cache).expanduser() / folder).glob('snapshots/*/*'))


def command_line() -> str:
    """Which Python this is, for a report that is sent to somebody."""
    return f'{sys.executable} on {platform.platform()}'
