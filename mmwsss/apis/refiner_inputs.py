"""What some refiners see besides photo and scores: stored files of the same photo.

Such a refiner has ``photo_inputs``, the kind of file -> the store's folder, and takes
an argument of that name, with one entry per photo. In its config the folder is the
argument of the same name, so that the files are known before anything is built.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmwsss.apis.outputs import file_hash
from mmwsss.apis.photos import Photo
from mmwsss.datasets import EmbeddingStore, SegmentStore, embedding_store, segment_store
from mmwsss.errors import InputError


def _segments(root: str, photo: Photo, size: tuple[int, int]) -> Tensor:
    store = SegmentStore(root)
    segments = store.read(photo.id)
    if segments.shape[1:] != size:
        raise InputError(
            f'{store.path(photo.id)} holds segments of a photo of '
            f'{segments.shape[1:]}, but {photo.path} has {size}; make them again'
        )
    return torch.from_numpy(segments)


def _embeddings(
    root: str, photo: Photo, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    store = EmbeddingStore(root)
    texts, cells = store.read_prompts().texts, store.read(photo.id)[1]
    if texts.shape[1] != len(cells):
        raise InputError(
            f'{store.path(photo.id)} holds embeddings of {len(cells)} numbers, but '
            f'those of {store.prompts_path} have {texts.shape[1]}; make them again'
        )
    return torch.from_numpy(cells), torch.from_numpy(texts)


# kind -> the files of a photo, how to make them, and their reader
_FILES: Mapping[str, tuple[Callable[[str, str], list[Path]], str, Callable]] = {
    'segments': (
        lambda root, name: [SegmentStore(root).path(name)],
        segment_store.HOW_TO_MAKE,
        _segments,
    ),
    'embeddings': (
        lambda root, name: [
            EmbeddingStore(root).path(name),
            EmbeddingStore(root).prompts_path,
        ],
        embedding_store.HOW_TO_MAKE,
        _embeddings,
    ),
}


def photo_input_hashes(refiners: Sequence[Mapping], photos: Sequence[Photo]) -> dict:
    """Photo id -> hashes of the files that a chain of refiners reads for it.

    Args:
        refiners: Configs of the chain.
        photos: Whose files must all be there.

    Raises:
        InputError: A photo has none.
    """
    hashes: dict[str, list[str]] = {photo.id: [] for photo in photos}
    for config in refiners:
        for kind in [kind for kind in _FILES if config.get(kind)]:
            for photo, paths in _paths(kind, config[kind], photos):
                hashes[photo.id].extend(map(file_hash, paths))
    return hashes


def _paths(kind: str, root: str, photos: Sequence[Photo]) -> list:
    files_of, how_to_make, _ = _FILES[kind]
    found = [(photo, files_of(root, photo.id)) for photo in photos]
    missing = [p for _, paths in found for p in paths[:1] if not p.is_file()]
    if missing:
        raise InputError(
            f'{root} lacks the {kind} of {len(missing)} of {len(photos)} photos, the '
            f'first is {missing[0]}; {how_to_make}'
        )
    shared = [p for _, paths in found[:1] for p in paths[1:] if not p.is_file()]
    if shared:
        raise InputError(f'{shared[0]} does not exist; {how_to_make}')
    return found


def without_folders(config: Mapping) -> dict:
    """A refiner's config without the folders of its files, whose place says nothing."""
    return {key: value for key, value in config.items() if key not in _FILES}


def read_photo_inputs(refiner: object, photo: Photo, size: tuple[int, int]) -> dict:
    """Keyword arguments for a refiner that reads stored files; {} for any other.

    Args:
        refiner: Of a chain.
        photo: Which one.
        size: (height, width) of the photo.

    Raises:
        InputError: A file is missing, damaged or of another size.
    """
    folders = getattr(refiner, 'photo_inputs', {})
    return {k: [_FILES[k][2](root, photo, size)] for k, root in folders.items()}
