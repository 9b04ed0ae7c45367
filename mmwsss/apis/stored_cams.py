"""A store's CAMs of the photos that a tool works on."""

from collections.abc import Sequence

from mmwsss.apis.photos import Photo
from mmwsss.datasets.cam_store import CAMStore, StoredCAMs
from mmwsss.errors import InputError, tool


def check_store(store: CAMStore, photos: Sequence[Photo]) -> None:
    """Raise an InputError if a photo's CAMs are missing."""
    missing = [p.id for p in photos if not store.path(p.id).is_file()]
    if missing:
        raise InputError(
            f'{store.root} lacks the CAMs of {len(missing)} of {len(photos)} photos, '
            f'the first is {missing[0]}; make them with: {tool("make_cams")} '
            f'CONFIG CHECKPOINT --out {store.root}'
        )


def read_cams(store: CAMStore, photo: Photo) -> StoredCAMs:
    """The CAMs of a photo.

    Raises:
        InputError: They are not of the classes that the photo's image label names.
    """
    stored = store.read(photo.id)
    if tuple(stored.classes.tolist()) != photo.classes:
        raise InputError(
            f'{store.path(photo.id)} holds CAMs of the classes '
            f'{stored.classes.tolist()}, but the image label of the photo has '
            f'{list(photo.classes)}; make the CAMs again'
        )
    return stored
