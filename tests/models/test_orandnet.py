import math

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from distributed_orandnet import LABELS, SIZES, batch, network, run_rank, train
from torch import nn

from mmwsss.errors import InputError
from mmwsss.models.refiners import LightUNet, ORANDNet, VGGFCN8s
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ATOL = 1e-12
SMALL = dict(widths=(2, 3, 4, 5, 6), fc_channels=7)


@MODELS.register_module()
class Times(nn.Module):
    """Logit = 8 (x - 0.3): what it makes of a map is known."""

    def __init__(self, *, channels=1) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(8.0))
        self.channels = channels

    def forward(self, maps):
        return ((maps - 0.3) * self.gain).expand(-1, self.channels, -1, -1)


TIMES = dict(type='mmwsss.Times')


# -------------------------------------------------------------------------- the loss
@pytest.mark.parametrize('clip', [True, False])
@pytest.mark.parametrize('loss_mode', ['bce', 'soft_ce'])
def test_loss_equals_a_loop(loss_mode, clip):
    model = network(network=TIMES, offsets=(0.0, 0.15), clip=clip, loss_mode=loss_mode)
    inputs, samples = batch()
    photos = []
    for sample in samples:
        present = [k for k in range(3) if sample.image_label[k] > 0]
        if not present:
            continue
        first, second = sample.cam_sources.tolist()
        total = 0.0
        cells = [(y, x) for y in range(len(first[0])) for x in range(len(first[0][0]))]
        for y, x in cells:
            pairs = [(first[k][y][x], second[k][y][x] + 0.15) for k in present]
            if clip:
                pairs = [(a, min(b, 1.0)) for a, b in pairs]
            logits = [8 * (a + b - a * b - 0.3) for a, b in pairs]
            targets = [a * b for a, b in pairs]
            if loss_mode == 'bce':
                for z, t in zip(logits, targets, strict=True):
                    t, p = min(t, 1.0), 1 / (1 + math.exp(-z))
                    loss = -t * math.log(p) - (1 - t) * math.log(1 - p)
                    total += loss / len(present)
            else:
                whole = math.fsum(map(math.exp, logits))
                for z, t in zip(logits, targets, strict=True):
                    total -= t * math.log(math.exp(z) / whole)
        photos.append(total / len(cells))
    (found,) = model(inputs, samples, mode='loss').values()
    assert len(photos) == 3
    assert found.item() == pytest.approx(sum(photos) / 3, rel=1e-9)


@pytest.mark.parametrize('stride', [1, 4])
def test_neither_padding_nor_other_photos_count(stride):
    model = network(stride=stride)
    inputs, samples = batch()
    (whole,) = model(inputs, samples, mode='loss').values()
    alone = []
    for number in (0, 2, 3):
        height, width = SIZES[number]
        image = inputs[number : number + 1, :, :height, :width]
        alone += model(image, samples[number : number + 1], mode='loss').values()
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-12)
    noise = torch.rand_like(inputs) * 9
    assert model(noise, samples, mode='loss')['loss_bce'].item() == whole.item()


def test_photos_without_a_class_contribute_nothing():
    model = network()
    inputs, samples = batch()
    (whole,) = model(inputs, samples, mode='loss').values()
    (without,) = model(
        inputs[:3], [samples[i] for i in (0, 2, 3)], mode='loss'
    ).values()
    assert whole.item() == without.item()
    (nothing,) = model(inputs[:1], samples[1:2], mode='loss').values()
    assert nothing.item() == 0
    nothing.backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_absent_classes_are_not_looked_at():
    model = network()
    inputs, samples = batch()
    (before,) = model(inputs, samples, mode='loss').values()
    for sample in samples:
        sample.cam_sources[:, sample.image_label <= 0] = 0.9
    assert model(inputs, samples, mode='loss')['loss_bce'].item() == before.item()


def test_as_released_photos_of_one_class_have_no_gradient():
    inputs, samples = batch()
    slopes = {}
    for loss_mode in ('bce', 'soft_ce'):
        model = network(loss_mode=loss_mode)
        (loss,) = model(inputs[2:3], samples[2:3], mode='loss').values()
        loss.backward()
        slopes[loss_mode] = sum(p.grad.abs().sum().item() for p in model.parameters())
    assert sum(LABELS[2]) == 1
    assert slopes['soft_ce'] == 0
    assert slopes['bce'] > 0


def test_it_learns_what_both_see():
    model = network()
    inputs, samples = batch()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        (loss,) = model(inputs, samples, mode='loss').values()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The OR of two uniform numbers tells something about their product, not all.
    assert losses[-1] < 0.9 * losses[0]
    model.eval()
    error = {'or': 0.0, 'predicted': 0.0}
    for sample in samples:
        sources = model._sources(sample)
        target = model.joined(sources, 'and')
        either = model.joined(sources, 'or')
        error['or'] += (either - target).abs().sum().item()
        error['predicted'] += (model.predicted(either) - target).abs().sum().item()
    assert error['predicted'] < 0.5 * error['or']


def test_two_processes_train_as_one(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{r}.pt') for r in range(2))
    expected = train(network(), slice(1, 4))
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-10)


# ------------------------------------------------------------------------- inference
def test_predictions_are_the_sigmoid_or_as_released():
    either = torch.rand(2, 5, 7, dtype=torch.float64)
    either[0, 0, 0] = 0.3
    logits = 8 * (either - 0.3)
    model = network(network=TIMES)
    expected = 1 / (1 + (-logits).exp())
    assert torch.allclose(model.predicted(either).double(), expected, atol=1e-6)
    model = network(network=TIMES, loss_mode='soft_ce')
    found = model.predicted(either)
    for k in range(2):
        best = max(logits[k].max().item(), 0)
        for z, r in zip(logits[k].flatten(), found[k].flatten(), strict=True):
            assert r.item() == pytest.approx(max(z.item(), 0) / (best + 1e-5), abs=1e-6)
    assert (model.predicted(torch.zeros(1, 3, 3)) == 0).all()


def test_classes_are_predicted_each_by_itself():
    model = network().eval()
    either = torch.rand(3, 9, 6, dtype=torch.float64)
    together = model.predicted(either)
    for k in range(3):
        assert torch.allclose(together[k], model.predicted(either[k : k + 1])[0])
    turned = model.predicted(either.flip(0))
    assert torch.allclose(turned.flip(0), together)


def test_predict_gives_cams_at_the_size_of_the_photo():
    model = network(network=TIMES, offsets=(0.0, 0.15)).eval()
    inputs, samples = batch()
    with torch.no_grad():
        model(inputs, samples, mode='predict')
    for sample, label, size in zip(samples, LABELS, SIZES, strict=True):
        assert sample.cams.shape == (3, *size)
        for k in range(3):
            if not label[k]:
                assert (sample.cams[k] == 0).all()
                continue
            a, b = sample.cam_sources[:, k]
            b = (b + 0.15).clamp(max=1)
            expected = (8 * (a + b - a * b - 0.3)).sigmoid().float()[None, None]
            expected = F.interpolate(expected, size, mode='bilinear')[0, 0]
            assert torch.allclose(sample.cams[k].float(), expected, atol=1e-6)


def test_refine_keeps_the_background_and_clears_absent_classes():
    model = network(network=TIMES, stride=1).eval()
    scores = torch.rand(2, 4, 10, 12)
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = model.refine(torch.rand(2, 3, 10, 12), scores, label)
    assert torch.equal(found[:, 0], scores[:, 0])
    expected = (8 * (scores[0, 1:] - 0.3)).sigmoid()
    assert torch.allclose(found[0, [1, 3]], expected[[0, 2]], atol=1e-6)
    assert (found[0, 2] == 0).all()
    assert (found[1, 1:] == 0).all()
    small = model.refine(torch.rand(2, 3, 40, 48), scores, label)
    assert small.shape == (2, 4, 40, 48)


def test_more_than_two_classifiers_and_degenerate_sizes():
    model = network(offsets=(0.0, 0.1, 0.2), network=dict(type='mmwsss.LightUNet'))
    found = model.fused(torch.rand(3, 2, 1, 1), (1, 3))
    assert found.shape == (2, 1, 1)
    assert model.fused(torch.rand(3, 0, 5, 5), (20, 17)).shape == (0, 5, 5)
    with pytest.raises(InputError, match='of 3 classifiers, got those of 2'):
        model.fused(torch.rand(2, 1, 5, 5), (20, 20))
    with pytest.raises(InputError, match='of 2 classifiers, got those of 1'):
        network().fused(torch.rand(1, 1, 5, 5), (20, 20))


def test_bad_arguments_and_pipelines_are_named():
    with pytest.raises(ValueError, match="got 'mse'"):
        network(loss_mode='mse')
    with pytest.raises(ValueError, match='stride must be at least 1'):
        network(stride=0)
    with pytest.raises(ValueError, match='one number per classifier'):
        network(offsets=(0.1,))
    inputs, samples = batch()
    wide = network(network=dict(type='mmwsss.Times', channels=2))
    with pytest.raises(InputError, match='one channel of the same size'):
        wide(inputs, samples, mode='loss')
    del samples[0].cam_sources
    with pytest.raises(InputError, match=r'mmwsss\.LoadCAMStores'):
        network()(inputs, samples, mode='loss')


# ------------------------------------------------------------------------- networks
@pytest.mark.parametrize('size', [(1, 1), (33, 47), (64, 64), (75, 20), (2, 90)])
def test_networks_return_the_size_they_got(size):
    maps = torch.rand(2, 1, *size)
    for net in (LightUNet(widths=(2, 3, 4)), LightUNet(widths=(3,)), VGGFCN8s(**SMALL)):
        assert net.eval()(maps).shape == maps.shape


def test_light_network_keeps_the_level_of_a_map():
    torch.manual_seed(0)
    net = LightUNet().eval()
    maps = torch.rand(1, 1, 20, 30)
    apart = (net(maps) - net(0.5 * maps)).abs().max()
    assert apart > 1e-3
    assert sum(p.numel() for p in net.parameters()) < 500_000


def test_vgg_network_has_the_published_size():
    # Built for real it takes half a gigabyte: the count is checked on a small one.
    def count(widths, fc):
        total, before = 16 + 16 + 256, 1
        for depth, width in zip((2, 2, 3, 3, 3), widths, strict=True):
            for _ in range(depth):
                total += 9 * before * width + width
                before = width
        total += (49 * before + 1) * fc + (fc + 1) * fc
        return total + (fc + 1) + (widths[3] + 1) + (widths[2] + 1)

    published = count((64, 128, 256, 512, 512), 4096)
    assert published == pytest.approx(134.26e6, rel=1e-4)
    small = sum(p.numel() for p in VGGFCN8s(**SMALL).parameters())
    assert small == count(SMALL['widths'], SMALL['fc_channels'])


@pytest.mark.parametrize('size', [(26, 58), (58, 26)])
def test_vgg_network_is_aligned_on_both_axes(size):
    # Sides at which the pooling cells lie symmetrically: with mirrored kernels a
    # mirrored map must give the mirrored answer, whichever crop would be wrong.
    torch.manual_seed(1)
    net = VGGFCN8s(**SMALL).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            module.weight.data = (weight + weight.flip(2) + weight.flip(3)) / 3
            module.weight.data += weight.flip(2, 3) / 3
            module.bias.data.fill_(0.1)
    maps = torch.rand(1, 1, *size, dtype=torch.float64)
    straight = net(maps)
    assert straight.std() > 0
    for axis in (2, 3):
        mirrored = net(maps.flip(axis)).flip(axis)
        assert torch.allclose(mirrored, straight, rtol=1e-9, atol=1e-12)


def test_vgg_weights_are_torchvisions_but_the_first_layer(tmp_path):
    net = VGGFCN8s(**SMALL)
    weights, position, before = {}, 0, 3
    for depth, width in zip(VGGFCN8s.DEPTHS, SMALL['widths'], strict=True):
        for _ in range(depth):
            weights[f'features.{position}.weight'] = torch.randn(width, before, 3, 3)
            weights[f'features.{position}.bias'] = torch.randn(width)
            before, position = width, position + 2
        position += 1
    weights['classifier.0.weight'] = torch.randn(7, 49 * 6)
    weights['classifier.0.bias'] = torch.randn(7)
    weights['classifier.3.weight'] = torch.randn(7, 7)
    weights['classifier.3.bias'] = torch.randn(7)
    weights['classifier.6.weight'] = torch.randn(1000, 7)
    weights['classifier.6.bias'] = torch.randn(1000)
    # The last convolution of torchvision's VGG16 bears this number.
    assert 'features.28.weight' in weights
    path = tmp_path / 'vgg16.pth'
    torch.save(weights, path)
    net = VGGFCN8s(**SMALL, weights=str(path))
    first = net.blocks[0][0].weight.clone()
    net.init_weights()
    assert torch.equal(net.blocks[0][0].weight, first)
    assert torch.equal(net.blocks[0][2].weight, weights['features.2.weight'])
    assert torch.equal(net.blocks[4][4].bias, weights['features.28.bias'])
    flat = weights['classifier.0.weight']
    assert torch.equal(net.fc6.weight.flatten(1), flat)
    # As a linear layer reads the cells: channels first.
    assert torch.equal(net.fc6.weight[3, 2, 1, 4], flat[3, 2 * 49 + 1 * 7 + 4])
    assert torch.equal(net.fc7.bias, weights['classifier.3.bias'])
    del weights['features.10.bias']
    torch.save(weights, path)
    with pytest.raises(InputError, match='does not fit'):
        net.init_weights()
    net.weights = str(tmp_path / 'none.pth')
    with pytest.raises(InputError, match=r'none\.pth'):
        net.init_weights()


def test_upsampling_starts_bilinear():
    net = VGGFCN8s(**SMALL)
    values = torch.rand(1, 1, 6, 5)
    for up, factor in zip(net.ups, (2, 2, 8), strict=True):
        expected = F.interpolate(values, scale_factor=factor, mode='bilinear')
        found = up(values)[..., factor // 2 : -factor // 2, factor // 2 : -factor // 2]
        inside = (..., slice(factor, -factor), slice(factor, -factor))
        assert torch.allclose(found[inside], expected[inside], atol=1e-6)


def test_orandnet_is_registered_with_its_networks():
    assert isinstance(network(), ORANDNet)
    assert MODELS.get('mmwsss.VGGFCN8s') is VGGFCN8s
    with pytest.raises(ValueError, match='five numbers'):
        VGGFCN8s(widths=(2, 3))
    with pytest.raises(ValueError, match='positive numbers'):
        LightUNet(widths=())
