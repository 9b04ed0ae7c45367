"""A trained segmentor as one ONNX file that says what its numbers mean.

The file takes photos as they are read, (N, 3, H, W) RGB in 0 to 255, and gives
``seg_logits`` (N, C, H, W) of the same height and width: normalisation and channel
order are inside. Class list, palette and the rest that a reader needs are JSON texts in
the model's metadata. The network is in its inference form (MobileOne's branches are
one). What onnxruntime makes of a real photo is compared with torch before anything is
written.
"""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import digit_version
from torch import Tensor, nn

import mmwsss
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.outputs import file_hash
from mmwsss.apis.photos import SPLITS, Photo, list_photos, photo_batch, photo_pipeline
from mmwsss.errors import InputError
from mmwsss.files import whole_file
from mmwsss.visualization.colors import voc_palette

INSTALL = "pip install 'mmwsss[export]'"
# The exporter that follows sizes through a network came with it.
MIN_TORCH = '2.7.0'
INPUT, OUTPUT = 'image', 'seg_logits'
# The free axes of the input, by their place.
AXES = {0: 'batch', 2: 'height', 3: 'width'}
# Of the largest logit. Joined branches and other orders of sums stay far below.
TOLERANCE = 1e-3
_MULTIPLE = 32


class Check(NamedTuple):
    """One comparison of onnxruntime with torch.

    Attributes:
        shape: (N, 3, H, W) of the input.
        difference: Largest one of the logits.
        scale: Largest logit, without its sign.
        other_labels: Share of the pixels whose best class differs.
    """

    shape: tuple[int, ...]
    difference: float
    scale: float
    other_labels: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within rounding; not where it is NaN."""
        return self.difference <= TOLERANCE * max(self.scale, 1.0)

    def __str__(self) -> str:
        count, _, height, width = self.shape
        return (
            f'{count} x {height} x {width}: largest difference {self.difference:.1e} '
            f'of {self.scale:.1f}, another class on {100 * self.other_labels:.3f} % of '
            'the pixels'
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        shape: Of the input, a name where an axis is free: ('batch', 3, 'height', ...).
        classes: C names, background first.
        checks: Comparisons with torch.
        notes: Sentences on what the file leaves to its reader.
    """

    path: Path
    shape: tuple[int | str, ...]
    classes: Sequence[str]
    checks: Sequence[Check]
    notes: Sequence[str]


class _ExportError(Exception):
    """The exporter or onnxruntime cannot take the network; says why in a line."""


class _Case(NamedTuple):
    """An input and what the network in torch makes of it, its own preprocessing first.

    Attributes:
        image: (N, 3, H, W) uint8 BGR, as the pipeline hands it out.
        seg_logits: (N, C, H, W).
    """

    image: Tensor
    seg_logits: np.ndarray


def export_onnx(
    config: Config,
    checkpoint: Path,
    out: Path,
    *,
    photo: Path | None = None,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write a segmentor as ONNX.

    Args:
        config: Of a segmentor of MMSegmentation's ``EncoderDecoder`` kind.
        checkpoint: Its weights, a file.
        out: The file to write, ``*.onnx``; replaced when it is there.
        photo: For the comparison; None takes the first of the config's data set.
        size: Height and width in pixels that the file takes, and no other; None leaves
            them free where the network can do without.

    Raises:
        InputError: A package or photo is missing, the network cannot be exported, or
            onnxruntime and torch differ; nothing is written then.
    """
    _check_packages()
    if out.suffix != '.onnx':
        raise InputError(f'the file to write must be called *.onnx, got {out}')
    if size is not None and min(size) < 1:
        raise InputError(f'the size must be two numbers above 0, got {size}')
    init_default_scope(config.get('default_scope', 'mmseg'))
    model, facts = load_model(config, checkpoint, 'cpu')
    if not hasattr(model, 'encode_decode'):
        raise InputError(
            f'{config.filename} has a {type(model).__name__}, which is no segmentor; '
            'train one on its labels and export that'
        )
    classes, palette = _classes(config, checkpoint, model)
    image = _read_photo(config, photo or _first_photo(config))
    proto, checks = _first_that_fits(model, image, size)
    _describe(
        proto,
        {
            'classes': classes,
            'palette': palette,
            'input': _input_facts(config, model),
            'output': _output_facts(model),
            'source': {
                'mmwsss': mmwsss.__version__,
                'config': Path(config.filename or '').stem,
                'checkpoint': checkpoint.name,
                'sha256_start': file_hash(checkpoint),
                'iteration': facts['iteration'],
            },
        },
    )
    with whole_file(out) as stream:
        stream.write(proto.SerializeToString())
    return Exported(
        path=out,
        shape=_input_shape(proto),
        classes=classes,
        checks=checks,
        notes=_notes(model, proto, asked=size is not None),
    )


def _check_packages() -> None:
    if digit_version(torch.__version__) < digit_version(MIN_TORCH):
        raise InputError(
            f'the export needs torch {MIN_TORCH} or newer, {torch.__version__} is '
            'installed'
        )
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            __import__(name)
        except ModuleNotFoundError:
            raise InputError(
                f'the export needs the package {name}, which is not installed; run: '
                f'{INSTALL}'
            ) from None


# ---------------------------------------------------------------------- the network
class _Network(nn.Module):
    """RGB in 0 to 255 (N, 3, H, W) -> seg_logits (N, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Normalisation and channel order, whatever preprocessor it is: a linear map of
        # the pixel, read off from what becomes of black and of each primary colour.
        colors = torch.cat([torch.zeros(1, 3), 255 * torch.eye(3)]).to(torch.uint8)
        bgr = colors.flip(1)[..., None, None].expand(-1, -1, _MULTIPLE, _MULTIPLE)
        seen = model.data_preprocessor(dict(inputs=list(bgr)), False)['inputs']
        offset, *columns = seen[..., 0, 0].double()
        matrix = torch.stack([(column - offset) / 255 for column in columns], 1)
        self.register_buffer('matrix', matrix[..., None, None].float())
        self.register_buffer('offset', offset.float())

    def forward(self, image: Tensor) -> Tensor:
        image = F.conv2d(image, self.matrix, self.offset)
        return self.model.encode_decode(image, [_meta(image)])


def _meta(image: Tensor) -> dict:
    # A tuple: MMSegmentation's heads take a torch.Size for a sliding window.
    size = tuple(image.shape[-2:])
    return dict(img_shape=size, ori_shape=size, pad_shape=size)


def _to_inference_form(model: nn.Module) -> None:
    """Join the branches of networks that can, MobileOne and RepVGG, from the inside."""
    for module in reversed(list(model.modules())):
        if hasattr(module, 'switch_to_deploy') and not getattr(module, 'deploy', False):
            module.switch_to_deploy()


# ------------------------------------------------------------- photos and the reference
def _first_photo(config: Config) -> Path:
    for split, loader in SPLITS.items():
        if config.get(loader) is None:
            continue
        try:
            photos = list_photos(config, split=split).photos
        except InputError:
            continue
        found = next((Path(p.path) for p in photos if Path(p.path).is_file()), None)
        if found is not None:
            return found
    raise InputError(
        'the comparison with torch needs a photo, and those of the config are not '
        'there; give one with --photo FILE'
    )


def _read_photo(config: Config, path: Path) -> Tensor:
    """(3, H, W) uint8 BGR at the size that the test pipeline gives the network."""
    if not path.is_file():
        raise InputError(f'the photo {path} does not exist')
    photo = Photo(id=path.stem, path=str(path), classes=())
    return photo_batch(photo_pipeline(config), photo, 1)['inputs'][0]


def _cases(model: nn.Module, image: Tensor, shape: Sequence[int | str]) -> list[_Case]:
    """The photo, and where the number of photos is free a pair, smaller if that is."""
    count, _, *size = shape
    sides = list(zip(size, image.shape[-2:], strict=True))
    first = _resized(image, [own if isinstance(n, str) else n for n, own in sides])
    if not isinstance(count, str):
        return [_case(model, first.expand(count, -1, -1, -1))]
    # Odd sizes, which a network that only knows multiples of its stride would refuse.
    other = [max(own * 3 // 4 | 1, 33) if isinstance(n, str) else n for n, own in sides]
    second = _resized(image, other)
    pair = torch.stack([second, second.flip(-1)])
    return [_case(model, first[None]), _case(model, pair)]


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    if list(image.shape[-2:]) == list(size):
        return image
    floats = F.interpolate(
        image[None].float(), tuple(size), mode='bilinear', antialias=True
    )
    return floats.round().clamp(0, 255).to(torch.uint8)[0]


@torch.no_grad()
def _case(model: nn.Module, image: Tensor) -> _Case:
    """Run the network as it was loaded, behind its own preprocessor."""
    data = model.data_preprocessor(dict(inputs=list(image)), False)
    inputs = data['inputs']
    if inputs.shape[-2:] != image.shape[-2:]:
        raise InputError(
            f'the data preprocessor makes {tuple(inputs.shape[-2:])} of a photo of '
            f'{tuple(image.shape[-2:])} (size or size_divisor in its test_cfg); give '
            'a --size that it leaves alone'
        )
    seg_logits = model.encode_decode(inputs, [_meta(inputs)] * len(inputs))
    return _Case(image, seg_logits.numpy())


# --------------------------------------------------------------------------- the export
def _first_that_fits(
    model: nn.Module, image: Tensor, size: tuple[int, int] | None
) -> tuple[object, list[Check]]:
    """Export with as many free axes as come out right, and compare with the model."""
    network = _Network(copy.deepcopy(model)).eval()
    _to_inference_form(network)
    batch = {0: AXES[0]}
    reason = ''
    for axes in [batch, {}] if size else [AXES, batch, {}]:
        try:
            proto = _convert(network, size or _round_size(image), axes)
            checks = [
                _compare(proto, case)
                for case in _cases(model, image, _input_shape(proto))
            ]
        except _ExportError as error:
            reason = reason or str(error)
            continue
        wrong = next((check for check in checks if not check.passed), None)
        if wrong is None:
            return proto, checks
        reason = reason or f'onnxruntime and torch differ on {wrong}'
    raise InputError(
        f'the network cannot be exported ({reason}); try --size HEIGHT WIDTH, or '
        'another network'
    )


def _round_size(image: Tensor) -> tuple[int, int]:
    """A size that any network can be traced at."""
    height, width = (-(-n // _MULTIPLE) * _MULTIPLE for n in image.shape[-2:])
    return height, width


def _convert(
    network: nn.Module, size: tuple[int, int], axes: Mapping[int, str]
) -> object:
    """An ONNX model; axes that the network cannot leave free are fixed."""
    # One photo would be taken for a fact of the network.
    count = 2 if 0 in axes else 1
    example = torch.full((count, 3, *size), 127.0)
    free = {axis: torch.export.Dim.AUTO for axis in axes}
    with warnings.catch_warnings(), torch.no_grad():
        # On versions and on outputs of heads that inference does not use.
        warnings.simplefilter('ignore')
        try:
            traced = torch.export.export(
                network, (example,), dynamic_shapes=(free,), strict=False
            )
            program = torch.onnx.export(
                traced,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(dict(axes),),
                verbose=False,
            )
        # Tracing runs the network, which may raise anything.
        except Exception as error:
            raise _ExportError(_first_line(error)) from error
    return program.model_proto


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip('.:') if lines else type(error).__name__


def _input_shape(proto: object) -> tuple[int | str, ...]:
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    return tuple(axis.dim_param or axis.dim_value for axis in axes)


def _compare(proto: object, case: _Case) -> Check:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # It logs what it raises as well.
    options.log_severity_level = 4
    rgb = case.image.flip(1).float().numpy()
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=['CPUExecutionProvider']
        )
        (found,) = session.run([OUTPUT], {INPUT: rgb})
    # Its errors have no class in common but this one.
    except Exception as error:
        raise _ExportError(_first_line(error)) from error
    wanted = case.seg_logits
    other = _labels(found) != _labels(wanted)
    return Check(
        shape=tuple(case.image.shape),
        difference=float(np.abs(found - wanted).max()),
        scale=float(np.abs(wanted).max()),
        other_labels=float(other.mean()),
    )


def _labels(seg_logits: np.ndarray) -> np.ndarray:
    """Label maps (N, H, W) of logits (N, C, H, W); a single one is of the object."""
    if seg_logits.shape[1] > 1:
        return seg_logits.argmax(1)
    return seg_logits[:, 0] > 0


# ------------------------------------------------------------------------- the metadata
def _classes(
    config: Config, checkpoint: Path, model: nn.Module
) -> tuple[list[str], list[list[int]]]:
    """Names and colours, as the network was trained, or else as the config has them."""
    content = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')
    meta = content.get('meta') or {} if isinstance(content, dict) else {}
    found = meta.get('dataset_meta') or {}
    names = list(found.get('classes') or _config_classes(config))
    if len(names) != model.num_classes:
        raise InputError(
            f'the network tells {model.num_classes} classes apart, but the data set '
            f'names {len(names)}; export with the config it was trained with'
        )
    palette = found.get('palette')
    colors = voc_palette(len(names)) if palette is None else np.asarray(palette)
    return names, colors.tolist()


def _config_classes(config: Config) -> list[str]:
    for split, loader in SPLITS.items():
        if config.get(loader) is not None:
            return ['background', *list_photos(config, split=split).class_names]
    raise InputError(
        'neither the checkpoint nor a data loader of the config names the classes'
    )


def _describe(proto: object, facts: Mapping[str, object]) -> None:
    import onnx

    texts = {k: json.dumps(v, ensure_ascii=False) for k, v in facts.items()}
    onnx.helper.set_model_props(proto, texts)
    proto.doc_string = (
        'Semantic segmentation by mmwsss. Metadata: JSON texts under '
        f'{", ".join(texts)}.'
    )


def _input_facts(config: Config, model: nn.Module) -> dict:
    facts = {
        'name': INPUT,
        'layout': 'NCHW',
        'color': 'RGB',
        'range': [0, 255],
        'resize': _resize_step(config),
    }
    if model.test_cfg.get('mode', 'whole') == 'slide':
        facts['window'] = {k: list(model.test_cfg[k]) for k in ('crop_size', 'stride')}
    return facts


def _resize_step(config: Config) -> dict | None:
    """How the test pipeline resizes a photo, None where it does not."""
    for step in photo_pipeline(config).transforms:
        if type(step).__name__ in ('Resize', 'RandomResize'):
            return {'scale': list(step.scale), 'keep_ratio': step.keep_ratio}
    return None


def _output_facts(model: nn.Module) -> dict:
    facts = {'name': OUTPUT, 'layout': 'NCHW', 'label': 'argmax over axis 1'}
    if model.out_channels == 1:
        threshold = model.decode_head.threshold
        facts |= {'label': 'sigmoid > threshold', 'threshold': threshold}
    return facts


def _notes(model: nn.Module, proto: object, *, asked: bool) -> list[str]:
    notes = []
    _, _, height, width = _input_shape(proto)
    if not asked and isinstance(height, int):
        notes.append(
            f'the network takes photos of {height} x {width} pixels alone (height x '
            'width); --size chooses them'
        )
    if model.test_cfg.get('mode', 'whole') == 'slide':
        notes.append(
            'the config tests with a sliding window; the file takes one window, see '
            '"window" in its metadata'
        )
    if getattr(model, 'crf', None) is not None:
        notes.append('the dense CRF after the network is not in the file')
    return notes
