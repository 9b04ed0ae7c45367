"""Cases of what works on files: data loading, stage tools, evaluation.

Their cores are processes: workers of a data loader, or ``--jobs`` of a tool. They read
the real photos of ../shared/data where these are, else drawn ones.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmwsss.apis.benchmark.case import CHECKOUT, Case, Setting, naive_forms

SHARED = CHECKOUT.parent / 'shared' / 'data'
LIST = 'ImageSets/Segmentation/train.txt'


@dataclass(frozen=True, kw_only=True)
class _PhotoCase(Case):
    """Works on ``number`` training photos."""

    has_naive: ClassVar[bool] = False
    processes: ClassVar[bool] = True
    number: int

    def tiny(self) -> Case:
        """A few photos."""
        return replace(self, number=4)

    def images(self) -> int:
        """Their number."""
        return self.number

    def _root(self, setting: Setting) -> Path:
        """A data set in VOC's layout."""
        if (SHARED / 'msrc').is_dir():
            return SHARED / 'msrc'
        from mmwsss.datasets.synthetic import generate

        root = setting.folder / 'photos'
        generate(root, seed=setting.seed, num_train=self.number, num_val=0)
        return root

    def _photos(self, setting: Setting) -> tuple:
        """Config of a CAM network, its file, what was changed, and the photos."""
        from mmengine.registry import init_default_scope

        from mmwsss.apis.photos import PhotoList, list_photos
        from mmwsss.apis.train import load_config

        root = self._root(setting)
        name = 'msrc' if root.name == 'msrc' else 'synth'
        file = str(CHECKOUT / 'configs' / f'cam_mobileone_{name}.py')
        options = {
            'model.weights': None,
            'train_dataloader.dataset.data_root': str(root),
        }
        config = load_config(file, options, None)
        init_default_scope(config.default_scope)
        found = list_photos(config, split='train')
        some = PhotoList(
            photos=found.photos[: self.number], class_names=found.class_names
        )
        return config, file, options, some


# ----------------------------------------------------------------------- data loading
@dataclass(frozen=True, kw_only=True)
class DataLoading(_PhotoCase):
    """Batches of 8 crops of clipdino's pipeline; the cores are the workers."""

    group: ClassVar[str] = 'data'
    devices: ClassVar[tuple[str, ...]] = ('cpu',)
    batch_size: int = 8

    def make(self, setting: Setting) -> tuple:
        """A running loader."""
        from mmengine.config import Config
        from mmengine.registry import init_default_scope
        from mmengine.runner import Runner

        config = Config.fromfile(CHECKOUT / 'configs/clipdino_refine_voc.py')
        init_default_scope(config.default_scope)
        content = config.train_dataloader
        content.update(batch_size=self.batch_size, num_workers=setting.cores)
        content.dataset.update(data_root=str(self._root(setting)), ann_file=LIST)
        batches = iter(Runner.build_dataloader(content, seed=setting.seed))
        next(batches)  # the workers start
        return (batches,)

    def fast(self, inputs: tuple[Iterator]) -> None:
        """As many batches as make the number of photos."""
        for _ in islice(inputs[0], -(-self.number // self.batch_size)):
            pass


# ------------------------------------------------------------------------ stage tools
@dataclass(frozen=True, kw_only=True)
class _StageTool(_PhotoCase):
    """A tool that writes one file per photo; the cores are its processes.

    The time is that between the first and the last files, since the start (reading
    the packages, building the network) is paid once for thousands of photos.
    """

    group: ClassVar[str] = 'tools'

    def steady_seconds(self, inputs: tuple) -> float | None:
        """From the files' times, scaled to all photos."""
        cores, out = inputs[0], _last(inputs[1])
        files = (*out.rglob('*.npz'), *out.rglob('*.png'))
        times = sorted(path.stat().st_mtime for path in files)
        # The first file of each process came with its start.
        counted = len(times) - cores
        if counted < 1:
            return None
        return (times[-1] - times[cores - 1]) * len(times) / counted


@dataclass(frozen=True, kw_only=True)
class MakeCAMs(_StageTool):
    """make_cams.py with a MobileOne-S0 of random weights, four scales and flips."""

    def make(self, setting: Setting) -> tuple:
        """A checkpoint and the photos."""
        from mmseg.registry import MODELS

        from mmwsss.apis.make_cams import CAMOptions

        config, file, options, found = self._photos(setting)
        torch.manual_seed(setting.seed)
        checkpoint = setting.folder / 'random.pth'
        model = MODELS.build(config.model)
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
        plan = CAMOptions(
            config=file,
            cfg_options=options,
            checkpoint=checkpoint,
            out=setting.folder,
            device=setting.device,
            num_classes=len(found.class_names),
        )
        return setting.cores, setting.folder, config, found, plan

    def fast(self, inputs: tuple) -> None:
        """All photos into a new folder."""
        from mmwsss.apis.make_cams import make_cams

        cores, folder, config, found, plan = inputs
        plan = replace(plan, out=_next(folder))
        make_cams(config, found, plan, jobs=cores, show=False)


@dataclass(frozen=True, kw_only=True)
class MakePseudoLabels(_StageTool):
    """make_pseudo_labels.py from stored CAMs of noise, through a refiner."""

    refiner: str

    def make(self, setting: Setting) -> tuple:
        """A store of smooth noise."""
        from mmwsss.apis.label_rules import BackgroundRule, parse_refiner
        from mmwsss.apis.make_pseudo_labels import LabelOptions

        config, file, options, found = self._photos(setting)
        plan = LabelOptions(
            config=file,
            cfg_options=options,
            cams=setting.folder / 'cams',
            backgrounds=[BackgroundRule.parse('0.25')],
            refiners=[parse_refiner(self.refiner)],
            out=setting.folder,
            device=setting.device,
            num_classes=len(found.class_names),
        )
        _store_noise(plan.cams, found.photos, setting)
        return setting.cores, setting.folder, config, found, plan

    def fast(self, inputs: tuple) -> None:
        """All photos into a new folder."""
        from mmwsss.apis.make_pseudo_labels import make_pseudo_labels

        cores, folder, config, found, plan = inputs
        plan = replace(plan, out=_next(folder))
        make_pseudo_labels(config, found, plan, jobs=cores, show=False)


@dataclass(frozen=True, kw_only=True)
class MakeWalkedLabels(MakePseudoLabels):
    """make_pseudo_labels.py through the random walk of an IRNet of random weights."""

    refiner: str = ''

    def make(self, setting: Setting) -> tuple:
        """The network, and what the other refiners get."""
        file, checkpoint = _random_irnet(setting)
        chain = f'TrainedRefiner(config={file!r}, checkpoint={checkpoint!r})'
        return MakePseudoLabels.make(replace(self, refiner=chain), setting)


def _random_irnet(setting: Setting) -> tuple[str, str]:
    """Config without ImageNet weights, and a checkpoint."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    config = Config.fromfile(CHECKOUT / 'configs/irnet_msrc.py')
    config.model.backbone.weights = None
    init_default_scope(config.default_scope)
    torch.manual_seed(setting.seed)
    model = MODELS.build(config.model)
    file, checkpoint = setting.folder / 'irnet.py', setting.folder / 'irnet.pth'
    config.dump(file)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    return str(file), str(checkpoint)


def _store_noise(root: Path, photos: Sequence, setting: Setting) -> None:
    from mmwsss.datasets.cam_store import CAMStore, StoredCAMs, grid_size

    generator = setting.generator()
    for photo in photos:
        _, height, width = photo.pixels().shape
        classes = np.array(photo.classes, dtype=np.int64)
        coarse = torch.rand(1, max(1, len(classes)), 5, 7, generator=generator)
        size = grid_size((height, width))
        maps = F.interpolate(coarse, size, mode='bilinear', align_corners=False)[0]
        cams = maps[: len(classes)].numpy()
        stored = StoredCAMs(classes=classes, cams=cams, size=(height, width))
        CAMStore(root).write(photo.id, stored)


def _runs(folder: Path) -> int:
    return len(list(folder.glob('run_*')))


def _next(folder: Path) -> Path:
    out = folder / f'run_{_runs(folder)}'
    out.mkdir()
    return out


def _last(folder: Path) -> Path:
    return folder / f'run_{_runs(folder) - 1}'


# ------------------------------------------------------------------------- evaluation
@dataclass(frozen=True, kw_only=True)
class Evaluation(Case):
    """eval_pseudo_labels.py on label maps of VOC's train; the cores are its processes.

    The published labels and masks of ../shared/data/voc12, or drawn ones of that size.
    """

    group: ClassVar[str] = 'evaluation'
    processes: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...]] = ('cpu',)
    # The package rounds percent to four decimals.
    tolerance: ClassVar[float] = 1e-5
    number: int
    num_classes: int = 21

    def make(self, setting: Setting) -> tuple:
        """Two folders, the ids that are scored, and the processes."""
        folders = setting.folder / 'pred', setting.folder / 'target'
        archives = [
            SHARED / 'voc12' / f'{name}_train.tar.xz' for name in ('transcam', 'gt')
        ]
        if all(path.is_file() for path in archives):
            for archive, folder in zip(archives, folders, strict=True):
                _unpack(archive, folder, self.number)
        else:
            _draw_masks(folders, self.number, self.num_classes, setting)
        ids = sorted(path.stem for path in folders[0].iterdir())
        return *folders, ids, setting.cores

    def fast(self, inputs: tuple) -> Tensor:
        """IoU of each class in percent."""
        from mmwsss.apis.label_folders import evaluate_folders

        pred, target, ids, cores = inputs
        names = [f'class {c}' for c in range(self.num_classes)]
        table = evaluate_folders(pred, target, ids=ids, classes=names, jobs=cores)
        return torch.tensor([row['iou'] or 0.0 for row in table['per_class']])

    def naive(self, inputs: tuple) -> Tensor:
        """Class by class."""
        pred, target, ids, _ = inputs
        pairs = ([_index_map(root, i) for root in (pred, target)] for i in ids)
        return torch.tensor(naive_forms().looped_scores(pairs, self.num_classes))

    def tiny(self) -> Case:
        """A few masks."""
        return replace(self, number=6)

    def images(self) -> int:
        """Their number."""
        return self.number


def _index_map(folder: Path, image_id: str) -> np.ndarray:
    """Read with Pillow alone: lossless WebP has the index in each channel."""
    (path,) = folder.glob(f'{image_id}.*')
    pixels = np.asarray(Image.open(path))
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _unpack(archive: Path, folder: Path, number: int) -> None:
    """The first label maps of an archive, by name."""
    folder.mkdir()
    with tarfile.open(archive) as content:
        members = sorted(content.getmembers(), key=lambda member: member.name)[:number]
        # Packed as one stream, which is read once from its start to its end.
        for member in sorted(members, key=lambda member: member.offset):
            maps = content.extractfile(member).read()
            (folder / Path(member.name).name).write_bytes(maps)


def _draw_masks(
    folders: Sequence[Path], number: int, num_classes: int, setting: Setting
) -> None:
    """Blocks of 25 pixels; the prediction is wrong in a third of them."""
    draw = np.random.default_rng(setting.seed)
    for folder in folders:
        folder.mkdir()
    for one in range(number):
        target = draw.integers(0, num_classes, (15, 20), dtype=np.uint8)
        other = draw.integers(0, num_classes, target.shape, dtype=np.uint8)
        pred = np.where(draw.random(target.shape) < 1 / 3, other, target)
        for folder, blocks in zip(folders, (pred, target), strict=True):
            mask = blocks.repeat(25, 0).repeat(25, 1)
            Image.fromarray(mask).save(folder / f'{one:06d}.png')


CASES: tuple[Case, ...] = (
    DataLoading(
        name='data_loading',
        what="clipdino's training pipeline, crops of 320 x 320, by workers",
        number=192,
    ),
    MakeCAMs(
        name='make_cams',
        what='make_cams.py, MobileOne-S0, 4 scales and flips, by processes',
        number=32,
    ),
    MakePseudoLabels(
        name='make_labels_pamr',
        what='make_pseudo_labels.py --refine PAMR, by processes',
        refiner='PAMR',
        number=64,
    ),
    MakePseudoLabels(
        name='make_labels_crf',
        what='make_pseudo_labels.py --refine "DenseCRF()", by processes',
        refiner='DenseCRF()',
        number=64,
    ),
    MakeWalkedLabels(
        name='make_labels_irn',
        what='make_pseudo_labels.py --refine IRNet, its random walk, by processes',
        number=64,
    ),
    Evaluation(
        name='evaluate_1464',
        what='eval_pseudo_labels.py on 1,464 label maps, by processes',
        number=1464,
    ),
)
