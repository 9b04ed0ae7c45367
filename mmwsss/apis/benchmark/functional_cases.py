"""Cases of single functions, on drawn inputs of the sizes that trainings have."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmwsss.apis.benchmark.case import Budget, Case, Cost, Setting, naive_forms
from mmwsss.apis.benchmark.case import num_bytes as size_of
from mmwsss.functional import (
    affinity_loss,
    blend_reliability,
    class_prototypes,
    decay_histogram,
    label_on_image_grid,
    pamr,
    par,
    path_index,
    prototype_cams,
    random_walk,
    read_history,
    sample_class_maps,
    stream_confidence,
    structural_consistency,
    structure_seeds,
    temporal_agreement,
    update_class_means,
)

FLOAT_BYTES = 4


# -------------------------------------------------------------------------- roofline
@dataclass(frozen=True, kw_only=True)
class CopyBandwidth(Case):
    """How fast this machine copies what no cache holds: the unit of all bytes.

    bytes = 2 * 4 * numbers (each read and written).
    """

    group: ClassVar[str] = 'roofline'
    has_naive: ClassVar[bool] = False
    numbers: int = 2**26

    def make(self, setting: Setting) -> tuple:
        """Two vectors."""
        source = setting.rand(self.numbers)
        return source, torch.zeros_like(source)

    def fast(self, inputs: tuple) -> None:
        """Copy one into the other."""
        source, target = inputs
        target.copy_(source)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        return Cost(bytes=size_of(inputs))

    def tiny(self) -> Case:
        """A short vector."""
        return replace(self, numbers=1000)


@dataclass(frozen=True, kw_only=True)
class MatmulRate(Case):
    """How fast this machine multiplies matrices: the unit of all operations.

    operations = 2 side^3.
    """

    group: ClassVar[str] = 'roofline'
    has_naive: ClassVar[bool] = False
    dtype: torch.dtype = torch.float32
    # A GPU needs more to be busy.
    sides: tuple[tuple[str, int], ...] = (('cpu', 2048), ('cuda', 8192))

    def make(self, setting: Setting) -> tuple:
        """Two square matrices."""
        side = dict(self.sides)[setting.device]
        matrix = setting.rand(side, side).to(self.dtype)
        return matrix, matrix.T.contiguous()

    def fast(self, inputs: tuple) -> None:
        """Their product."""
        torch.mm(*inputs)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        return Cost(operations=2.0 * len(inputs[0]) ** 3)

    def tiny(self) -> Case:
        """Small matrices."""
        return replace(self, sides=(('cpu', 32), ('cuda', 32)))


# ---------------------------------------------------------------------- PAMR and PAR
@dataclass(frozen=True, kw_only=True)
class LocalAffinity(Case):
    """PAMR or PAR with 48 taps and 10 iterations.

    With N images of P pixels, C' channels that hold anything, T iterations and
    float32: bytes = 4 N P (3 + 48) for the kernel once, and T times
    4 N P (48 + 2 C') to read it and to read and write the scores; operations =
    T * 2 * 48 N P C' and 48 N P * 3 * 6 for the kernel.
    """

    group: ClassVar[str] = 'local_affinity'
    tolerance: ClassVar[float] = 2e-5
    method: str
    shape: tuple[int, int, int, int]
    image_size: tuple[int, int] | None = None
    present: int | None = None
    naive_form: str = 'stacked'
    num_iters: int = 10

    def make(self, setting: Setting) -> tuple:
        """A photo of noise, and scores that are empty but for the first channels."""
        n, c, height, width = self.shape
        image = setting.rand(n, 3, *(self.image_size or (height, width)))
        scores = setting.rand(n, c, height, width).softmax(1)
        if self.present is not None:
            scores[:, self.present + 1 :] = 0  # the background is always there
        return image, scores

    def fast(self, inputs: tuple) -> Tensor:
        """The package's."""
        function = {'pamr': pamr, 'par': par}[self.method]
        return function(*inputs, num_iters=self.num_iters)

    def naive(self, inputs: tuple) -> Tensor:
        """All neighbours of all pixels at once."""
        image, scores = inputs
        if scores.shape[-2:] != image.shape[-2:]:
            scores = torch.nn.functional.interpolate(
                scores, image.shape[-2:], mode='bilinear', align_corners=True
            )
        function = getattr(naive_forms(), f'{self.naive_form}_{self.method}')
        return function(image, scores, num_iters=self.num_iters)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        image, scores = inputs
        pixels = image[:, 0].numel()
        channels = scores.shape[1] if self.present is None else self.present + 1
        moved = 51 + self.num_iters * (48 + 2 * channels)
        products = 2 * 48 * channels * self.num_iters + 48 * 3 * 6
        return Cost(bytes=FLOAT_BYTES * pixels * moved, operations=pixels * products)

    def tiny(self) -> Case:
        """Smaller than the widest dilation, an odd size."""
        n, c, _, _ = self.shape
        image_size = self.image_size and (26, 30)
        return replace(self, shape=(min(n, 2), c, 13, 15), image_size=image_size)

    def images(self) -> int:
        """N."""
        return self.shape[0]


# -------------------------------------------------------------------------- Grad-CAM
@dataclass(frozen=True, kw_only=True)
class GradCAM(Case):
    """Softmax Grad-CAMs of all classes of a batch of photos, CLIP's last block.

    With T tokens of D channels and M classes in the fullest photo: a pass through the
    block is 24 T D^2 + 4 T^2 D operations, a backward one to the activations
    24 T D^2 + 8 T^2 D, so operations = N (24 T D^2 + 4 T^2 D + M (24 T D^2 +
    8 T^2 D)). bytes = 4 * 12 D^2 for the weights, twice.
    """

    group: ClassVar[str] = 'cams'
    half_precision: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4
    batch_size: int
    side: int
    patch_size: int
    width: int
    present: int = 3
    num_classes: int = 20

    def make(self, setting: Setting) -> tuple:
        """An encoder of two blocks at full width: only the last one is measured."""
        from mmwsss.models.encoders.clip import FrozenCLIP

        encoder = FrozenCLIP(
            model=self._config(),
            class_names=[f'thing {k}' for k in range(self.num_classes)],
            background_words=['ground', 'sky', 'water'],
            num_attentions=0,
        ).to(setting.device)
        image = setting.rand(self.batch_size, 3, self.side, self.side)
        label = setting.image_label(self.batch_size, self.num_classes, self.present)
        return encoder, encoder.encode(image), label

    def _config(self) -> dict:
        vision = dict(
            image_size=self.patch_size * 14,
            layers=2,
            width=self.width,
            head_width=min(64, self.width // 2),
            patch_size=self.patch_size,
        )
        text = dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)
        return dict(embed_dim=64, vision_cfg=vision, text_cfg=text)

    def fast(self, inputs: tuple) -> Tensor:
        """One backward pass."""
        encoder, encoded, label = inputs
        with self._precision(label):
            return encoder.grad_cams(encoded, label, max_classes=self.present)

    def naive(self, inputs: tuple) -> Tensor:
        """One for each class of each photo, as released."""
        with self._precision(inputs[-1]):
            return naive_forms().grad_cams_one_by_one(*inputs)

    def _precision(self, label: Tensor) -> torch.autocast:
        return torch.autocast(
            label.device.type, torch.bfloat16, enabled=label.device.type == 'cuda'
        )

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        tokens, d = inputs[1].last_block_input.shape[1:]
        linear, attention = 24.0 * tokens * d**2, 4.0 * tokens**2 * d
        forward, backward = linear + attention, linear + 2 * attention
        return Cost(
            bytes=2 * FLOAT_BYTES * 12 * d**2,
            operations=self.batch_size * (forward + self.present * backward),
        )

    def tiny(self) -> Case:
        """A narrow block and small photos."""
        return replace(self, batch_size=2, side=64, width=32, num_classes=5)

    def images(self) -> int:
        """N."""
        return self.batch_size


# ------------------------------------------------------------------------ prototypes
@dataclass(frozen=True, kw_only=True)
class PrototypeMaps(Case):
    """Structure seeds, class prototypes and their maps, as in a step of SIPE.

    With c = h w cells: operations = N (2 c^2 D for the likeness of all cells, 2 c^2 C
    for the overlaps, 2 * 2 c C D for prototypes and cosines); bytes = 4 N c (2 D +
    3 C), the features twice.
    """

    group: ClassVar[str] = 'prototypes'
    # Cosines; a cell whose two best classes agree to the last bit may change sides.
    tolerance: ClassVar[float] = 1e-4
    shape: tuple[int, int, int, int] = (16, 768, 32, 32)
    num_classes: int = 21
    present: int = 3

    def make(self, setting: Setting) -> tuple:
        """Features, scores of the present classes, and which those are."""
        n, _, h, w = self.shape
        label = setting.image_label(n, self.num_classes - 1, self.present)
        allowed = torch.nn.functional.pad(label, (1, 0), value=1.0)[:, :, None, None]
        features = setting.rand(*self.shape) - 0.4
        cams = setting.rand(n, self.num_classes, h, w) ** 2 * allowed
        return features, cams, allowed.expand_as(cams).contiguous()

    def fast(self, inputs: tuple) -> Tensor:
        """The package's."""
        features, cams, allowed = inputs
        seeds = structure_seeds(features, cams, allowed)
        return prototype_cams(features, class_prototypes(features, seeds))

    def naive(self, inputs: tuple) -> Tensor:
        """Products over (C, cells, cells)."""
        return naive_forms().broadcast_prototype_maps(*inputs)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        n, d, h, w = self.shape
        c, cells = self.num_classes, h * w
        products = 2.0 * cells**2 * (d + c) + 4.0 * cells * c * d
        return Cost(
            bytes=FLOAT_BYTES * n * cells * (2 * d + 3 * c), operations=n * products
        )

    def tiny(self) -> Case:
        """A grid of odd size."""
        return replace(self, shape=(2, 12, 5, 7), num_classes=6)

    def images(self) -> int:
        """N."""
        return self.shape[0]


# ----------------------------------------------------------------------- random walk
@dataclass(frozen=True, kw_only=True)
class RandomWalk(Case):
    """256 steps of IRN's random walk of the present classes' maps.

    Counted for the 120 products with the transition matrix that a series in float64
    needs. With E neighbours in a half plane and P cells: operations = 120 P K
    (4 E + 3); bytes = 120 * 8 P (E + 3 K), every weight read once in a product.
    """

    group: ClassVar[str] = 'random_walk'
    # 256 steps in float32, as the naive form makes them, are off by this much.
    tolerance: ClassVar[float] = 5e-3
    radius: int
    size: tuple[int, int]
    num_classes: int = 3

    def make(self, setting: Setting) -> tuple:
        """Smooth maps between thin boundaries."""
        noise = setting.rand(1, self.num_classes + 1, *self.size)
        boundary = (noise[:, -1:] > 0.9).float() * noise[:, -1:]
        return noise[:, :-1].contiguous(), boundary

    def fast(self, inputs: tuple) -> Tensor:
        """The package's."""
        return random_walk(*inputs, radius=self.radius)

    def naive(self, inputs: tuple) -> Tensor:
        """Eight squarings of the dense matrix, as released."""
        return naive_forms().squared_walk(
            *inputs, radius=self.radius, beta=10, num_steps=256
        )

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        cells = self.size[0] * self.size[1]
        k, edges = self.num_classes, len(path_index(self.radius))
        return Cost(
            bytes=120.0 * 8 * cells * (edges + 3 * k),
            operations=120.0 * cells * k * (4 * edges + 3),
        )

    def tiny(self) -> Case:
        """A grid of odd size."""
        return replace(self, size=(9, 13))

    def images(self) -> int:
        """One."""
        return 1


# -------------------------------------------------------------------------- losses
@dataclass(frozen=True, kw_only=True)
class AffinityLoss(Case):
    """AFA's affinity loss and its gradient on the decoder's grid.

    With c = h w cells: bytes = 2 * 4 N c^2, the matrix read and its gradient written;
    operations = 2 N c (2 r + 1)^2, one subtraction and one sum per near pair.
    """

    group: ClassVar[str] = 'losses'
    shape: tuple[int, int, int] = (8, 20, 20)
    radius: int = 8
    num_classes: int = 21

    def make(self, setting: Setting) -> tuple:
        """An affinity and labels, one in ten unknown."""
        n, h, w = self.shape
        noise = setting.rand(n, h, w)
        label = (noise * 1.1 * self.num_classes).long()
        label = label.masked_fill(label >= self.num_classes, 255)
        return setting.rand(n, h * w, h * w), label

    def fast(self, inputs: tuple) -> tuple[Tensor, Tensor]:
        """The package's."""
        affinity = inputs[0].detach().requires_grad_()
        loss = affinity_loss(affinity, inputs[1], radius=self.radius)
        return loss, torch.autograd.grad(loss, affinity)[0]

    def naive(self, inputs: tuple) -> tuple[Tensor, Tensor]:
        """Cell by cell."""
        return naive_forms().looped_affinity_loss(*inputs, radius=self.radius)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        n, h, w = self.shape
        pairs = n * h * w * (2 * self.radius + 1) ** 2
        return Cost(bytes=2 * size_of(inputs[0]), operations=2.0 * pairs)

    def tiny(self) -> Case:
        """A grid of odd size."""
        return replace(self, shape=(2, 5, 4), radius=2, num_classes=4)

    def images(self) -> int:
        """N."""
        return self.shape[0]


# ----------------------------------------------------------------------- reliability
@dataclass(frozen=True, kw_only=True)
class ReliabilityUpdate(Case):
    """All that the reliability gate estimates and remembers of one batch.

    History read, three signals, blend, the value of each pixel's label, class means,
    and the visit counted. bytes: features, both streams and the labels once, the
    counts read and written, the reliability written; operations = N h w
    ((2 r + 1)^2 - 1) / 2 * 2 D for the affinities of near cells, r = 2.
    """

    group: ClassVar[str] = 'reliability'
    tolerance: ClassVar[float] = 1e-4
    batch_size: int = 8
    num_classes: int = 21
    present: int = 3
    cells: int = 20
    channels: int = 384
    side: int = 320
    grid: int = 32

    def make(self, setting: Setting) -> tuple:
        """A batch of crops that lie inside their photos."""
        n, c = self.batch_size, self.num_classes
        image_label = setting.image_label(n, c - 1, self.present)
        allowed = torch.nn.functional.pad(image_label, (1, 0), value=1.0)
        allowed = allowed[:, :, None, None]
        noise = setting.rand(n, c, self.cells, self.cells)
        streams = [noise * 4, noise.flip(2) * 4]
        pixels = setting.rand(n, c, self.side, self.side)
        counts = setting.rand(n, c, self.grid, self.grid) * allowed
        affine = torch.tensor([[0.6, 0.2, 1.0], [-0.5, 0.9, 1.0]])
        return (
            counts,
            streams,
            setting.rand(n, self.channels, self.cells, self.cells) - 0.4,
            image_label,
            affine.expand(n, 2, 3).contiguous().to(setting.device),
            (pixels * allowed).argmax(1),
            (noise * allowed).argmax(1),
            torch.full((c,), 0.5, device=setting.device),
        )

    def fast(self, inputs: tuple) -> tuple[Tensor, Tensor, Tensor]:
        """The package's."""
        counts, streams, features, image_label, affine, label, cells, means = inputs
        history = read_history(counts, affine, tuple(cells.shape[-2:]))
        maps = blend_reliability(
            temporal_agreement(history, image_label),
            stream_confidence(streams, image_label),
            structural_consistency(features, cells, self.num_classes),
            image_label,
        )
        reliability = sample_class_maps(maps, label)
        means = update_class_means(means, reliability, label, momentum=0.99)
        seen = label_on_image_grid(cells, affine, self.grid)
        return reliability, means, decay_histogram(counts, seen)

    def naive(self, inputs: tuple) -> tuple[Tensor, Tensor, Tensor]:
        """Cell by cell."""
        return naive_forms().looped_reliability(*inputs)

    def cost(self, inputs: tuple) -> Cost:
        """See the class."""
        counts, streams, features, *_, label, cells, _ = inputs
        moved = 2 * size_of(counts) + sum(map(size_of, (*streams, features)))
        moved += size_of(label) * 1.5 + size_of(cells)
        near = cells.numel() * 12
        return Cost(bytes=moved, operations=2.0 * near * self.channels)

    def tiny(self) -> Case:
        """Two images of a few cells."""
        return replace(
            self, batch_size=2, num_classes=6, cells=5, channels=8, side=21, grid=6
        )

    def images(self) -> int:
        """N."""
        return self.batch_size


VOC = (2, 21, 320, 320)
CASES: tuple[Case, ...] = (
    *(
        LocalAffinity(
            name=f'{method}_voc{suffix}',
            what=f'{method.upper()}, 2 x 21 x 320 x 320, {words}, against plain '
            'shift-and-stack',
            method=method,
            shape=VOC,
            present=present,
            budget=Budget(threads=1, times_faster=20, extra_mb=150),
        )
        for method in ('pamr', 'par')
        for present, suffix, words in (
            (None, '', 'all classes present'),
            (3, '_present3', '3 classes present'),
            (1, '_present1', '1 class present'),
        )
    ),
    LocalAffinity(
        name='pamr_voc_published',
        what='PAMR, 2 x 21 x 320 x 320, against the released one-hot convolutions',
        method='pamr',
        shape=VOC,
        naive_form='convolved',
        slow=True,
        budget=Budget(threads=1, times_faster=50, extra_mb=150),
    ),
    *(
        LocalAffinity(
            name=f'{method}_512',
            what=f'{method.upper()}, 1 x 4 x 512 x 512, all classes present',
            method=method,
            shape=(1, 4, 512, 512),
        )
        for method in ('pamr', 'par')
    ),
    LocalAffinity(
        name='pamr_stride16',
        what='PAMR as in a step of AE-SIPE: scores 16 x 21 x 32 x 32 on images of '
        '128 x 128, 3 classes present',
        method='pamr',
        shape=(16, 21, 32, 32),
        image_size=(128, 128),
        present=3,
    ),
    LocalAffinity(
        name='par_stride16',
        what='PAR as in a step of clipdino: scores 8 x 21 x 20 x 20 on images of '
        '160 x 160, 3 classes present',
        method='par',
        shape=(8, 21, 20, 20),
        image_size=(160, 160),
        present=3,
    ),
    GradCAM(
        name='grad_cam_b',
        what='Grad-CAMs of CLIP ViT-B/16, 8 photos of 320 x 320, 3 of 20 classes each',
        batch_size=8,
        side=320,
        patch_size=16,
        width=768,
    ),
    GradCAM(
        name='grad_cam_l',
        what='Grad-CAMs of CLIP ViT-L/14, 4 photos of 320 x 320, 3 of 20 classes each',
        batch_size=4,
        side=320,
        patch_size=14,
        width=1024,
    ),
    PrototypeMaps(
        name='seeds_and_prototypes',
        what='seeds, prototypes and their maps of SIPE, 16 x 768 x 32 x 32, 21 classes',
    ),
    RandomWalk(
        name='random_walk_small',
        what='random walk at radius 5 on a 47 x 63 grid, 3 classes, 256 steps',
        radius=5,
        size=(47, 63),
    ),
    RandomWalk(
        name='random_walk_5',
        what='random walk at radius 5 on a 94 x 125 grid, 3 classes, 256 steps',
        radius=5,
        size=(94, 125),
        naive_is_slow=True,
        budget=Budget(threads=1, times_faster=500),
    ),
    RandomWalk(
        name='random_walk_10',
        what='random walk at radius 10 on a 94 x 125 grid, 3 classes, 256 steps',
        radius=10,
        size=(94, 125),
        naive_is_slow=True,
    ),
    AffinityLoss(
        name='affinity_loss',
        what='affinity loss and gradient, 8 x 400 x 400, radius 8',
    ),
    ReliabilityUpdate(
        name='reliability_update',
        what='history, signals, blend and class means of 8 crops of 320 x 320',
    ),
)
ROOFLINE: tuple[Case, ...] = (
    CopyBandwidth(name='copy', what='copy of 268 MB, the unit of bytes'),
    MatmulRate(name='matmul', what='float32 matrix product, the unit of operations'),
)
HALF_ROOFLINE = MatmulRate(
    name='matmul_bf16',
    what='bfloat16 matrix product, the unit of operations under autocast',
    dtype=torch.bfloat16,
)
