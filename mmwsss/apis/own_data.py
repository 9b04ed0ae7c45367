"""A config for own photos: another folder, other classes, other stored labels.

What a folder of own data may hold; ``image_labels.json`` and photos are enough:

=====================  =============================================================
``image_labels.json``  classes, and the tags of each photo
``photos``             photos, subfolders included; also ``images``, ``JPEGImages``,
                       or the folder itself
``masks``              masks of some photos, for scoring alone; also
                       ``SegmentationClass``
``val.txt``            ids of photos that are scored and not learned from
``train.txt``          ids of photos that are learned from; default: all others
``test.txt``           ids that `mmwsss test` scores; default: those of ``val.txt``;
                       not learned from either
=====================  =============================================================
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmwsss.apis.label_folders import read_class_names
from mmwsss.apis.make_pseudo_labels import LABEL_FOLDER, RELIABILITY_FOLDER
from mmwsss.apis.photos import SPLITS
from mmwsss.datasets.image_label_dataset import find_maps, find_photos
from mmwsss.datasets.image_labels import ImageLabels, load_image_labels
from mmwsss.errors import InputError

PHOTO_FOLDERS = ('photos', 'images', 'JPEGImages', '')
MASK_FOLDERS = ('masks', 'SegmentationClass')
LISTS = ('{}.txt', 'ImageSets/Segmentation/{}.txt')
_STORED_LABELS = 'mmwsss.LoadPseudoLabels'
_WITH_EXCLUDE = ('mmwsss.ImageLabelDataset', 'mmwsss.VideoClipDataset')
_PROBE = 'mmwsss.PseudoLabelProbeHook'


# ------------------------------------------------------------------------ the folder
def with_data(config: Config, folder: Path) -> Config:
    """A config that learns from the photos and tags of another folder.

    The folder takes the place of ``data_root`` wherever that stands. If it holds image
    labels, everything that depends on the classes follows them: ``num_classes``, the
    words for CLIP (unless they mean the same classes already), and the range of masks.
    Lists, photos and masks are those that the config names, and where the folder does
    not have them, those of the module's table. Without masks of listed val photos there
    is no validation.

    Args:
        config: Not changed.
        folder: Root of the data set.

    Returns:
        A config that is complete: its dump needs no folder any more.

    Raises:
        InputError: ``folder`` is none, the config has no ``data_root``, or something
            in one of them has no counterpart in the other.
    """
    if not folder.is_dir():
        raise InputError(f'--data {folder} is no folder; give the root of the data set')
    root = config.get('data_root')
    if not isinstance(root, str):
        raise InputError(
            f'{config.filename} sets no data_root that --data could replace; use '
            '--cfg-options train_dataloader.dataset.data_root=FOLDER and the same for '
            'the others'
        )
    content = _moved(config.to_dict(), root, str(folder))
    datasets = _photo_datasets(content)
    if datasets:
        file = _label_file(folder, datasets)
        # Without one the data set says what is missing, once it is built.
        if file is not None:
            labels = load_image_labels(file)
            content = _with_classes(content, labels.classes, str(config.filename))
            _OwnFolder(folder, file.name, labels).fill(content)
    return _changed(config, content)


def _changed(config: Config, content: dict) -> Config:
    found = copy.deepcopy(config)
    for key, value in content.items():
        found[key] = value
    return found


def _moved(content: object, root: str, folder: str) -> object:
    """Nested content with another root, alone and in front of longer paths."""
    if isinstance(content, Mapping):
        return {key: _moved(value, root, folder) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_moved(value, root, folder) for value in content)
    if isinstance(content, str) and (content == root or content.startswith(f'{root}/')):
        return folder + content[len(root) :]
    return content


def _photo_datasets(content: Mapping) -> dict[str, dict]:
    """Loader -> its data set with image labels, inside of wrappers."""
    return {n: d for n, d in _datasets(content).items() if 'image_labels' in d}


def _datasets(content: Mapping) -> dict[str, dict]:
    """Loader -> its data set, inside of wrappers."""
    found = {}
    for name in SPLITS.values():
        dataset = (content.get(name) or {}).get('dataset') or {}
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        found[name] = dataset
    return found


def _label_file(folder: Path, datasets: Mapping[str, Mapping]) -> Path | None:
    own = next(iter(datasets.values()))['image_labels']
    for name in (own, 'image_labels.json', 'image_labels.json.gz'):
        if (folder / name).is_file():
            return folder / name
    return None


class _OwnFolder:
    """What lies where in a folder, and how a config's data sets read it."""

    def __init__(self, root: Path, label_file: str, labels: ImageLabels) -> None:
        self.root, self.label_file, self.labels = root, label_file, labels

    def fill(self, content: dict) -> None:
        """Make the data sets of a config read what is there."""
        datasets = _photo_datasets(content)
        prefix = dict(next(iter(datasets.values())).get('data_prefix') or {})
        photos = self._photos(prefix.get('img_path'))
        masks = self._masks(prefix.get('seg_map_path'))
        wanted = {n: d.get('ann_file') or '' for n, d in datasets.items()}
        train = self._list(wanted.get('train_dataloader'), 'train')
        val = self._list(wanted.get('val_dataloader'), 'val')
        test = self._list(wanted.get('test_dataloader'), 'test')
        held_out = list(dict.fromkeys(name for name in (val, test) if name))
        scored = {
            'train_dataloader': True,
            'train_eval_dataloader': self._has_masks(train, held_out, masks),
            'val_dataloader': bool(val and masks),
            'test_dataloader': bool(held_out and masks),
        }
        lists = {
            'train_dataloader': train,
            'train_eval_dataloader': self._list(
                wanted.get('train_eval_dataloader'), 'train'
            ),
            'val_dataloader': val,
            'test_dataloader': test or val,
        }
        for name, dataset in datasets.items():
            dataset['image_labels'] = self.label_file
            dataset['data_prefix'] = {'img_path': photos}
            if masks is not None and scored[name]:
                dataset['data_prefix']['seg_map_path'] = masks
            if wanted[name] and lists[name] == wanted[name]:
                # Laid out as the config expects it; nothing is left out then.
                continue
            dataset['img_suffix'], dataset['skip_unlabelled'] = None, True
            dataset['ann_file'] = lists[name] if scored[name] else ''
            if not dataset['ann_file'] and name.startswith('train') and held_out:
                dataset['exclude'] = held_out
            if name != 'train_dataloader' and scored[name]:
                dataset['only_with'] = [str(self.root / masks)]
        if not scored['val_dataloader']:
            content.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
        if 'train_eval_dataloader' in datasets and not scored['train_eval_dataloader']:
            content['train_eval_dataloader'] = None
        if content.get('train_eval_dataloader') is None:
            _drop_probe(content)

    def _photos(self, wanted: str | None) -> str:
        names = dict.fromkeys([*([wanted] if wanted else []), *PHOTO_FOLDERS])
        for name in names:
            place = self.root / name
            if place.is_dir() and any(
                image_id in self.labels.labels for image_id, _ in find_photos(place)
            ):
                return name
        first = next(iter(self.labels.labels), None)
        if first is None:
            raise InputError(
                f'{self.root / self.label_file} names no photo; make it again with: '
                'mmwsss convert tags'
            )
        places = ', '.join(str(self.root / name) for name in names)
        raise InputError(
            f'none of the photos that {self.root / self.label_file} names, the first '
            f'is {first!r}, lies in {places}; put them into {self.root / "photos"}'
        )

    def _masks(self, wanted: str | None) -> str | None:
        for name in dict.fromkeys([*([wanted] if wanted else []), *MASK_FOLDERS]):
            if (self.root / name).is_dir():
                return name
        return None

    def _list(self, wanted: str | None, split: str) -> str:
        for name in ([wanted] if wanted else []) + [p.format(split) for p in LISTS]:
            if (self.root / name).is_file():
                return name
        return ''

    def _ids(self, name: str) -> set[str]:
        lines = (self.root / name).read_text(encoding='utf-8-sig').splitlines()
        known = self.labels.labels
        return {x if x in known else x.split()[0] for x in map(str.strip, lines) if x}

    def _has_masks(
        self, train: str, held_out: Sequence[str], masks: str | None
    ) -> bool:
        """Whether a photo that is learned from has a mask."""
        if masks is None:
            return False
        away = {image_id for name in held_out for image_id in self._ids(name)}
        ids = self._ids(train) if train else set(self.labels.labels) - away
        return any(image_id in ids for image_id in find_maps(self.root / masks))


def check_scorable(config: Config, *, config_name: str, checkpoint: str) -> None:
    """Raise an InputError where test photos with tags have no masks to score against.

    Args:
        config: Of ``with_data``, or a shipped one.
        config_name: What to call it in a command line.
        checkpoint: The same.
    """
    dataset = _photo_datasets(config).get('test_dataloader')
    if dataset is None or (dataset.get('data_prefix') or {}).get('seg_map_path'):
        return
    root = Path(dataset.get('data_root') or '')
    masks = next((root / n for n in MASK_FOLDERS if (root / n).is_dir()), None)
    if masks is None:
        missing = (
            f'{root} has no masks to score against: put masks of some photos into '
            f'{root / MASK_FOLDERS[0]}, named as their photos, and their ids into '
            f'{root / "val.txt"}'
        )
    else:
        missing = (
            f'no list in {root} says which photos to score: write the ids of photos '
            f'with a mask in {masks}, one a line, into {root / "val.txt"}'
        )
    photos = root / (dataset.get('data_prefix') or {}).get('img_path', '')
    raise InputError(
        f'{missing} (before training, so that they are not learned from); masks of '
        f'photos without any scoring makes: mmwsss label {config_name} {checkpoint} '
        f'{photos} --tags {root / dataset["image_labels"]} --out masks'
    )


def _drop_probe(content: dict) -> None:
    """Without masks of train photos nothing can be probed."""
    content['custom_hooks'] = [
        hook
        for hook in content.get('custom_hooks') or []
        if hook.get('type') != _PROBE or hook.get('dataloader') is not None
    ]


# ----------------------------------------------------------------------- the classes
def _with_classes(content: dict, names: Sequence[str], config: str) -> dict:
    number = _number_of_classes(content)
    if number is None:
        raise InputError(
            f'nothing in {config} says how many classes it has: neither '
            'mmwsss.LoadMask(num_classes=...) in a pipeline nor '
            'model.decode_head.num_classes; --data cannot change it'
        )
    return _renamed(content, number, list(names), '')


def _number_of_classes(content: Mapping) -> int | None:
    """C with background, as the pipelines or the segmentor's head have it."""
    for dataset in _datasets(content).values():
        for step in dataset.get('pipeline') or ():
            if step.get('num_classes'):
                return step['num_classes']
    head = (content.get('model') or {}).get('decode_head') or {}
    return head.get('num_classes') if isinstance(head, Mapping) else None


def _renamed(content: object, number: int, names: Sequence[str], key: str) -> object:
    """Nested content for other classes.

    Args:
        content: Of a config of ``number`` classes with background. A ``num_classes`` of
            another value than that, or one less, has another meaning and stays.
        number: C.
        names: The new foreground classes.
        key: Where the content stands, with dots, for messages.
    """
    if isinstance(content, list | tuple):
        return type(content)(
            _renamed(c, number, names, f'{key}.{i}') for i, c in enumerate(content)
        )
    if not isinstance(content, Mapping):
        return content
    found = {
        name: _renamed(value, number, names, f'{key}.{name}'.lstrip('.'))
        for name, value in content.items()
    }
    count = found.get('num_classes')
    if isinstance(count, int) and 0 <= number - count <= 1:
        found['num_classes'] = len(names) + 1 - (number - count)
        if found.get('out_channels') == count:
            found['out_channels'] = found['num_classes']
    weight = found.get('class_weight')
    if isinstance(weight, list | tuple) and len(weight) == number != len(names) + 1:
        raise InputError(
            f'{key}.class_weight has a weight for each of {number} classes, but the '
            f'image labels have {len(names) + 1} with background; change it in a '
            'config of your own'
        )
    if _are_words(found.get('class_names'), number):
        found.update(_words(found, names))
    return found


def _are_words(words: object, number: int) -> bool:
    return isinstance(words, list | tuple) and len(words) == number - 1


def _words(found: Mapping, names: Sequence[str]) -> dict[str, list[str]]:
    """What CLIP calls the classes, and what surrounds them."""
    words = list(found['class_names'])
    if not _mean_the_same(words, names):
        words = [name.replace('_', ' ') for name in names]
    changed = {'class_names': words}
    around = found.get('background_words')
    if isinstance(around, list | tuple):
        # A class of its own is no background.
        changed['background_words'] = [
            word for word in around if word not in words and word not in names
        ]
    return changed


def _mean_the_same(words: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a config's words are for these classes: most share a word in place.

    Words say more than names ('bird avian' for bird), so they are not equal.
    """
    if len(words) != len(names):
        return False
    shared = [
        bool(set(re.findall(r'\w+', a.lower())) & set(re.findall(r'\w+', b.lower())))
        for a, b in zip(words, names, strict=True)
    ]
    return 2 * sum(shared) > len(names)


# ---------------------------------------------------------------- labels of a round
def with_labels(config: Config, folders: Sequence[Path]) -> Config:
    """A config that learns from stored labels of its photos.

    Args:
        config: With ``mmwsss.LoadPseudoLabels`` in its training pipeline; not changed.
        folders: What ``mmwsss label`` or ``mmwsss convert annotations`` wrote, or PNGs
            named by image id. A photo's label comes from the first that has one, so
            corrected labels stand in front. Photos without any are left out.

    Raises:
        InputError: The config learns from image labels alone, a folder holds no labels,
            or they are of other classes.
    """
    content = copy.deepcopy(config.to_dict())
    steps = _label_steps(content)
    if not steps:
        raise InputError(
            f'{config.filename} learns from image labels alone; leave --labels out, or '
            'take a config that learns from stored labels, such as '
            'deeplabv3_mobileone_msrc'
        )
    roots = [_label_root(folder) for folder in folders]
    dataset = _photo_datasets(content).get('train_dataloader')
    if dataset is not None:
        file = Path(dataset.get('data_root') or '', dataset['image_labels'])
        names = list(load_image_labels(file).classes)
        for folder in folders:
            _check_classes(folder, names, file)
        dataset['only_with'] = [str(root) for root in roots]
    for step in steps:
        step['label_root'] = _one_or_all([str(root) for root in roots])
        if step.get('reliability_root') is not None:
            sure = [folder / RELIABILITY_FOLDER for folder in folders]
            step['reliability_root'] = _one_or_all(
                [str(path) if path.is_dir() else None for path in sure]
            )
    return _changed(config, content)


def without_photos(config: Config, lists: Sequence[Path]) -> Config:
    """A config that does not learn from the photos that lists name.

    Args:
        config: Not changed.
        lists: Files with one image id a line, see ``exclude`` of ``ImageLabelDataset``
            and of ``VideoClipDataset``.

    Raises:
        InputError: There is no such list, or the training has another kind of data set.
    """
    for path in lists:
        if not path.is_file():
            raise InputError(f'the list {path} does not exist; correct --exclude')
    content = copy.deepcopy(config.to_dict())
    datasets = _datasets(content)
    if datasets['train_dataloader'].get('type') not in _WITH_EXCLUDE:
        raise InputError(
            f'{config.filename} trains on no {" or ".join(_WITH_EXCLUDE)}, from which '
            '--exclude could leave photos out'
        )
    for name in ('train_dataloader', 'train_eval_dataloader'):
        if datasets[name].get('type') in _WITH_EXCLUDE:
            before = datasets[name].get('exclude') or []
            before = [before] if isinstance(before, str) else before
            # From everywhere, whatever the data set's root is.
            found = [str(path.resolve()) for path in lists]
            datasets[name]['exclude'] = [*before, *found]
    return _changed(config, content)


def missing_labels(config: Config) -> str | None:
    """The folder of stored labels that a config learns from and that is not there."""
    for step in _label_steps(config):
        roots = step['label_root']
        for root in [roots] if isinstance(roots, str) else roots:
            if not Path(root).is_dir():
                return root
    return None


def _label_steps(content: Mapping) -> list[dict]:
    dataset = (content.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    steps = dataset.get('pipeline') or ()
    return [step for step in steps if step.get('type') == _STORED_LABELS]


def _label_root(folder: Path) -> Path:
    for root in (folder / LABEL_FOLDER, folder):
        if root.is_dir() and find_maps(root):
            return root
    raise InputError(
        f'{folder} holds no labels, neither {LABEL_FOLDER}/ID.png nor ID.png; give '
        'what mmwsss label or mmwsss convert annotations wrote'
    )


def _check_classes(folder: Path, names: list[str], file: Path) -> None:
    if (folder / 'classes.txt').is_file():
        stored = read_class_names(folder / 'classes.txt')[1:]
    elif (folder / 'image_labels.json').is_file():
        stored = list(load_image_labels(folder / 'image_labels.json').classes)
    else:
        return
    if stored != names:
        raise InputError(
            f'the labels in {folder} are of {", ".join(stored)}, but {file} has the '
            f'classes {", ".join(names)}; they must be the same, in the same order'
        )


def _one_or_all(values: list) -> object:
    return values[0] if len(values) == 1 else values
