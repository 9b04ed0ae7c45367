"""Embeddings of photos and prompts on disk, so that CLIP is needed only once.

``ID.npz`` holds ``image`` (E,), the embedding of the whole photo, and ``cells``
(E, h, w), those of its places, both float16; ``prompts.npz`` holds ``texts``
(K + B, E) float32, the K classes first, and ``num_classes``. Nothing is pickled; a file
is whole or not there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmwsss.errors import InputError, tool
from mmwsss.files import whole_file

from .cam_store import DAMAGED

HOW_TO_MAKE = f'make it with: {tool("check_prompts")} (see --help)'


@dataclass(frozen=True, eq=False)
class Prompts:
    """Embeddings of prompts.

    Attributes:
        texts: (K + B, E) float32, the classes first.
        num_classes: K.
    """

    texts: np.ndarray
    num_classes: int


class EmbeddingStore:
    """A folder of embeddings.

    Args:
        root: the folder; it need not be there yet.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def prompts_path(self) -> Path:
        """Where the prompts are or would be."""
        return self.root / 'prompts.npz'

    def path(self, image_id: str) -> Path:
        """Where the embeddings of a photo are or would be."""
        return self.root / f'{image_id}.npz'

    def write_prompts(self, prompts: Prompts) -> None:
        """Write the prompts."""
        with whole_file(self.prompts_path) as stream:
            np.savez(
                stream,
                texts=prompts.texts.astype(np.float32),
                num_classes=np.array(prompts.num_classes),
            )

    def write(self, image_id: str, image: np.ndarray, cells: np.ndarray) -> None:
        """Write the embeddings of one photo, (E,) and (E, h, w).

        Raises:
            ValueError: if they do not belong together.
            InputError: if the file cannot be written.
        """
        if image.ndim != 1 or cells.ndim != 3 or len(image) != len(cells):
            raise ValueError(
                f'embeddings must be (E,) and (E, h, w), got {image.shape} and '
                f'{cells.shape}'
            )
        with whole_file(self.path(image_id)) as stream:
            np.savez(
                stream, image=image.astype(np.float16), cells=cells.astype(np.float16)
            )

    def read_prompts(self) -> Prompts:
        """Read the prompts; a missing or damaged file raises InputError."""
        texts, number = _read(self.prompts_path, 'texts', 'num_classes')
        if texts.ndim != 2 or number.ndim or not 1 <= number < len(texts):
            raise InputError(
                f'{self.prompts_path} must hold texts (K + B, E) and num_classes K, '
                f'got {texts.shape} and {number.tolist()}; {HOW_TO_MAKE}'
            )
        return Prompts(texts.astype(np.float32), int(number))

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (E,) and (E, h, w) float32 of a photo.

        Raises:
            InputError: if the file is missing, damaged or something else.
        """
        path = self.path(image_id)
        image, cells = _read(path, 'image', 'cells')
        if image.ndim != 1 or cells.ndim != 3 or len(image) != len(cells):
            raise InputError(
                f'{path} must hold image (E,) and cells (E, h, w), got {image.shape} '
                f'and {cells.shape}; {HOW_TO_MAKE}'
            )
        return image.astype(np.float32), cells.astype(np.float32)


def _read(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return [content[name] for name in names]
    except FileNotFoundError:
        raise InputError(f'{path} does not exist; {HOW_TO_MAKE}') from None
    except DAMAGED as error:
        raise InputError(
            f'{path} cannot be read as embeddings ({error}); {HOW_TO_MAKE}'
        ) from None
