import math

import pytest
import torch

from mmwsss.functional import prompt_margin, separability


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_margin_is_over_the_best_background_prompt():
    images, texts = random(4, 6), random(5, 6, seed=1)
    found = prompt_margin(images, texts, num_classes=2)
    for m in range(4):
        image = images[m].tolist()
        best = max(cosine(image, t.tolist()) for t in texts[2:])
        for k in range(2):
            expected = cosine(image, texts[k].tolist()) - best
            assert found[m, k].item() == pytest.approx(expected, abs=1e-12)
    # The length of a vector says nothing.
    again = prompt_margin(7 * images, 0.1 * texts, num_classes=2)
    assert torch.allclose(again, found)


def test_separability_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    pos = torch.randint(6, (7,), generator=generator).float() + 1
    neg = torch.randint(6, (9,), generator=generator).float()
    wins = sum((p > n) + 0.5 * (p == n) for p in pos.tolist() for n in neg.tolist())
    assert separability(pos, neg).item() == pytest.approx(wins / 63, abs=1e-12)
    assert separability(pos, pos).item() == 0.5
    assert separability(neg + 10, neg) == 1
    assert separability(neg, neg + 10) == 0


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda x: prompt_margin(x, x[:, :2], num_classes=1), 'image_features must be'),
        (lambda x: prompt_margin(x, x, num_classes=3), 'num_classes must be 1 to 2.*3'),
        (lambda x: prompt_margin(x, x, num_classes=0), 'num_classes must be .* got 0'),
        (lambda x: separability(x[0], x[0][:0]), 'negative must hold one score'),
        (lambda x: separability(x, x[0]), r'positive must hold .* \(3, 4\)'),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(3, 4))
