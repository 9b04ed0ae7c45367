"""Colours: the palette of PASCAL VOC and a heat scale, as uint8 arrays."""

import numpy as np

UNDECIDED_COLOR = (224, 224, 224)
# Not among the first colours of VOC's palette.
BAND_COLOR = (255, 225, 25)

# Dark violet to light yellow, rising in lightness, so that it also reads in grey.
_HEAT_STOPS = np.array(
    [
        [12, 8, 38],
        [74, 18, 108],
        [143, 36, 105],
        [205, 66, 72],
        [244, 122, 36],
        [252, 186, 62],
        [253, 246, 178],
    ],
    dtype=np.float64,
)


def voc_palette(num_colors: int = 256) -> np.ndarray:
    """Palette of PASCAL VOC masks, (num_colors, 3) uint8 RGB.

    The bits of the index are dealt out to red, green and blue in turn, highest colour
    bit first, so that small indices are far apart.
    """
    index = np.arange(num_colors)
    palette = np.zeros((num_colors, 3), dtype=np.int64)
    for level in range(8):
        for channel in range(3):
            bit = (index >> (3 * level + channel)) & 1
            palette[:, channel] |= bit << (7 - level)
    return palette.astype(np.uint8)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Colour values in [0, 1] of any shape, (..., 3) uint8 RGB, light = high."""
    place = np.clip(np.nan_to_num(values), 0, 1) * (len(_HEAT_STOPS) - 1)
    stops = np.arange(len(_HEAT_STOPS))
    channels = [np.interp(place, stops, _HEAT_STOPS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
