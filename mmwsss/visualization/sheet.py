"""One picture of many: rows of tiles with captions, for TensorBoard and folders."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE_SIDE_PX = 240
GAP_PX = 8
CAPTION_PX = 18


def tile_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    *,
    tile_side: int = TILE_SIDE_PX,
) -> np.ndarray:
    """Lay pictures of any size out in a table with a caption above each column.

    Args:
        rows: Rows of uint8 RGB pictures (H, W, 3), one for each title.
        titles: Captions of the columns.
        tile_side: The longer side of a tile, in pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if there is no row or a row has not one picture for each title.
    """
    wrong = [len(row) for row in rows if len(row) != len(titles)]
    if not rows or not titles or wrong:
        raise ValueError(
            f'each row must hold {len(titles)} pictures, got rows of {wrong or "none"}'
        )
    tiles = [[_fitted(pixels, tile_side) for pixels in row] for row in rows]
    width = max(tile.width for row in tiles for tile in row)
    heights = [max(tile.height for tile in row) for row in tiles]
    sheet = Image.new(
        'RGB',
        (
            GAP_PX + len(titles) * (width + GAP_PX),
            CAPTION_PX + GAP_PX + sum(heights) + GAP_PX * len(heights),
        ),
        'white',
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(titles):
        draw.text((_left(column, width), GAP_PX // 2), title, fill='black', font=font)
    top = CAPTION_PX + GAP_PX
    for row, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_left(column, width), top))
        top += height + GAP_PX
    return np.asarray(sheet)


def _left(column: int, width: int) -> int:
    return GAP_PX + column * (width + GAP_PX)


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = [max(round(length * scale), 1) for length in picture.size]
    return picture.resize(size, Image.Resampling.BILINEAR)
