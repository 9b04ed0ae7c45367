"""The file of photo weights: {"weights": {image_id: number}}."""

import math
from collections.abc import Mapping
from pathlib import Path

from mmwsss.errors import InputError, tool
from mmwsss.files import read_json, write_json

HOW_TO_MAKE = f'make it with: {tool("find_shortcuts")} (see --help)'


def load_photo_weights(path: str | Path) -> dict[str, float]:
    """Image id -> weight, finite and at least 0; anything else raises InputError."""
    if not Path(path).is_file():
        raise InputError(f'the photo weights {path} do not exist; {HOW_TO_MAKE}')
    content = read_json(path)
    weights = content.get('weights') if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise InputError(
            f'{path} must hold {{"weights": {{image id: number}}}}; {HOW_TO_MAKE}'
        )
    for image_id, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise InputError(
                f'the weight of {image_id!r} in {path} must be a number of at least '
                f'0, got {weight!r}'
            )
    return {image_id: float(weight) for image_id, weight in weights.items()}


def save_photo_weights(path: str | Path, weights: Mapping[str, float]) -> None:
    """Write the file under a temporary name and rename it."""
    write_json(Path(path), {'weights': dict(weights)})
