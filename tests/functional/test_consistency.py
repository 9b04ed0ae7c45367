import math

import pytest
import torch

from mmwsss.functional.consistency import teacher_consistency


def slow(student, teacher, image_label, valid, threshold):
    """Mean divergence over cells, one cell and class at a time in float64."""
    total, count = 0.0, 0
    n, c, h, w = student.shape
    for i in range(n):
        classes = [0] + [k for k in range(1, c) if image_label[i, k - 1] > 0]
        for y in range(h):
            for x in range(w):
                p = [math.exp(teacher[i, k, y, x].item()) for k in classes]
                q = [math.exp(student[i, k, y, x].item()) for k in classes]
                p = [v / sum(p) for v in p]
                q = [v / sum(q) for v in q]
                if max(p) < threshold or not valid[i, 0, y, x]:
                    continue
                count += 1
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / max(count, 1)


@pytest.mark.parametrize('threshold', [0.0, 0.6])
def test_equals_the_slow_sum(threshold):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(
        2, 2, 4, 3, 5, dtype=torch.float64, generator=generator
    )
    image_label = torch.tensor([[1, 0, 1], [0, 0, 0]])
    valid = torch.ones(2, 1, 3, 5)
    valid[:, :, :, 3:] = 0
    found = teacher_consistency(
        student, teacher, image_label, valid=valid, threshold=threshold
    )
    expected = slow(student, teacher, image_label, valid, threshold)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_equal_predictions_cost_nothing_and_only_the_student_learns():
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    teacher = student.detach().clone().requires_grad_()
    image_label = torch.tensor([[1, 1]])
    assert teacher_consistency(student, teacher, image_label).item() == pytest.approx(
        0, abs=1e-7
    )
    teacher_consistency(student, 2 * teacher, image_label).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_absent_classes_get_no_gradient():
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = teacher_consistency(student, torch.randn(1, 3, 4, 4), torch.tensor([[0, 1]]))
    loss.backward()
    assert not student.grad[:, 1].any()
    assert student.grad[:, 2].any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_to_count_is_zero_and_finite(dtype):
    student = torch.randn(1, 3, 2, 2).to(dtype).requires_grad_()
    loss = teacher_consistency(
        student,
        torch.randn(1, 3, 2, 2).to(dtype),
        torch.tensor([[1, 1]]),
        valid=torch.zeros(1, 1, 2, 2),
    )
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_shapes_and_threshold_are_checked():
    maps, label = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2)
    with pytest.raises(ValueError, match='one shape'):
        teacher_consistency(maps, maps[..., :1], label)
    with pytest.raises(ValueError, match='threshold'):
        teacher_consistency(maps, maps, label, threshold=1.5)
