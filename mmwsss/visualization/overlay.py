"""Pictures of maps over photos. Everything is uint8 RGB (H, W, 3) numpy."""

import numpy as np

from mmwsss.visualization.colors import (
    BAND_COLOR,
    UNDECIDED_COLOR,
    heat_colors,
    voc_palette,
)

_LUMA = np.array([0.299, 0.587, 0.114])


def color_labels(label: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
    """Colour a label map (H, W); undecided pixels (255) become grey stripes."""
    palette = voc_palette() if palette is None else np.asarray(palette, dtype=np.uint8)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: min(len(palette), 256)] = palette[:256]
    colors = table[label.astype(np.uint8)]
    undecided = label == 255
    if undecided.any():
        colors[undecided] = _stripes(*label.shape)[undecided]
    return colors


def overlay_labels(
    photo: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray | None = None,
    *,
    opacity: float = 0.62,
) -> np.ndarray:
    """Lay a label map over a faded photo; objects get an outline in their colour."""
    base = _faded(photo)
    colors = color_labels(label, palette).astype(np.float64)
    alpha = np.where(label == 0, 0.0, opacity)
    alpha = np.where(label == 255, 0.75, alpha)
    alpha = np.where(outline(label) & (label != 255), 1.0, alpha)[..., None]
    return _mix(base, colors, alpha)


def overlay_cam(photo: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Lay one class's CAM (H, W) in [0, 1] over a faded photo as a heat map."""
    alpha = 0.35 + 0.5 * np.clip(np.nan_to_num(cam), 0, 1)[..., None]
    return _mix(_faded(photo), heat_colors(cam).astype(np.float64), alpha)


def overlay_reliability(
    photo: np.ndarray, reliability: np.ndarray, label: np.ndarray | None = None
) -> np.ndarray:
    """Show reliability (H, W) in [0, 1] as a heat map, light where high.

    Pixels that the label leaves undecided (255) become grey stripes: there is nothing
    to rely on.
    """
    colors = heat_colors(reliability).astype(np.float64)
    if label is not None and (label == 255).any():
        undecided = label == 255
        colors[undecided] = _stripes(*label.shape)[undecided]
    return _mix(_faded(photo), colors, 0.75)


def overlay_band(
    photo: np.ndarray,
    band: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """Show a band (H, W) 0/1 in one bright colour over a faint label map."""
    base = overlay_labels(photo, label, palette, opacity=0.25).astype(np.float64)
    alpha = 0.85 * (band > 0)[..., None]
    return _mix(base, np.array(BAND_COLOR, dtype=np.float64), alpha)


def overlay_scores(
    photo: np.ndarray, scores: np.ndarray, palette: np.ndarray | None = None
) -> np.ndarray:
    """Show scores (C, H, W): colour of the best object class, opaque where certain."""
    palette = voc_palette() if palette is None else np.asarray(palette, dtype=np.uint8)
    foreground = np.clip(np.nan_to_num(scores[1:]), 0, 1)
    if not len(foreground):
        return _faded(photo).round().astype(np.uint8)
    best = foreground.argmax(axis=0)
    alpha = 0.9 * np.take_along_axis(foreground, best[None], axis=0)[0][..., None]
    return _mix(_faded(photo), palette[best + 1].astype(np.float64), alpha)


def outline(label: np.ndarray) -> np.ndarray:
    """True on object pixels that touch another label, (H, W) bool."""
    padded = np.pad(label, 1, mode='edge')
    height, width = label.shape
    edge = np.zeros(label.shape, dtype=bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[dy : dy + height, dx : dx + width] != label
    return edge & (label != 0)


def _faded(photo: np.ndarray) -> np.ndarray:
    # Less colour in the photo leaves the colour to the classes.
    photo = photo.astype(np.float64)
    grey = (photo @ _LUMA)[..., None]
    return 0.35 * photo + 0.65 * grey


def _mix(base: np.ndarray, colors: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    return ((1 - alpha) * base + alpha * colors).round().astype(np.uint8)


def _stripes(height: int, width: int) -> np.ndarray:
    # Wide enough to survive being shown at half its size.
    period = max(6, min(height, width) // 24)
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // max(period // 2, 1)
    light = np.array(UNDECIDED_COLOR, dtype=np.uint8)
    return np.where((diagonal % 2 == 0)[..., None], light, light // 2)
