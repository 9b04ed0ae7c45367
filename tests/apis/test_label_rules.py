import pytest
import torch

from mmwsss.apis.label_rules import BackgroundRule, build_refiners, parse_refiner
from mmwsss.errors import InputError


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('0.25', ('threshold', 0.25)),
        ('0', ('threshold', 0)),
        ('own', ('own', 1)),
        ('own*0.8', ('own', 0.8)),
        ('own*1.25', ('own', 1.25)),
        ('power:4', ('power', 4)),
    ],
)
def test_rules_are_read_and_written(text, expected):
    rule = BackgroundRule.parse(text)
    assert (rule.kind, rule.value) == expected
    assert BackgroundRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    'text',
    [
        '',
        '1.5',
        '-0.1',
        'nan',
        'inf',
        'owner',
        'own*',
        'own*0',
        'own0.8',
        'power',
        '25%',
    ],
)
def test_other_rules_are_refused(text):
    with pytest.raises(InputError, match='is none of: a number') as caught:
        BackgroundRule.parse(text)
    assert '\n' not in str(caught.value)


def test_scores_by_every_rule():
    cams, own = torch.rand(2, 3, 4), torch.rand(3, 4)
    scores = {
        text: BackgroundRule.parse(text).scores(cams, own)
        for text in ('0.3', 'own', 'own*0.5', 'power:2')
    }
    for found in scores.values():
        assert found.shape == (1, 3, 3, 4)
        assert torch.equal(found[0, 1:], cams)
    assert (scores['0.3'][0, 0] == 0.3).all()
    assert torch.equal(scores['own'][0, 0], own)
    torch.testing.assert_close(scores['own*0.5'][0, 0], own / 2)
    torch.testing.assert_close(scores['power:2'][0, 0], (1 - cams.amax(0)) ** 2)
    with pytest.raises(InputError, match=r'own\*0\.5 needs scores with a background'):
        BackgroundRule.parse('own*0.5').scores(cams, None)


def test_refiners_are_read_as_literals():
    assert parse_refiner('PAMR') == {'type': 'mmwsss.PAMR'}
    assert parse_refiner(' PAR(num_iters=3, dilations=[1, 2]) ') == {
        'type': 'mmwsss.PAR',
        'num_iters': 3,
        'dilations': [1, 2],
    }
    text = "TrainedRefiner(config='a.py', checkpoint='b', cfg_options={'model.x': 0.3})"
    assert parse_refiner(text)['cfg_options'] == {'model.x': 0.3}


@pytest.mark.parametrize(
    'text',
    [
        '',
        'PAMR(',
        'PAMR(3)',
        'PAMR(**{})',
        'PAMR(num_iters=1 + x)',
        'mmwsss.PAMR',
        'PAMR; PAR',
        "PAMR(num_iters=__import__('os').getpid())",
    ],
)
def test_other_texts_are_no_refiners(text):
    with pytest.raises(InputError, match='is no refiner') as caught:
        parse_refiner(text)
    assert '\n' not in str(caught.value)


def test_chains_are_built_in_order_and_mistakes_named():
    configs = [parse_refiner(t) for t in ('PAR(num_iters=2)', 'PAMR(num_iters=1)')]
    chain = build_refiners(configs, 'cpu')
    assert [type(r).__name__ for r in chain] == ['PAR', 'PAMR']
    assert chain[0].num_iters == 2
    assert not chain[0].training
    for text, message in [
        ('PAM', "'PAM' is no refiner of scores; those are PAMR, PAR, DenseCRF"),
        ('AttentionRefiner', 'is no refiner of scores'),
        ('DenseCRF(gt_prob=7)', 'gt_prob must be in'),
        ('PAMR(iters=3)', "unexpected keyword argument 'iters'"),
        ("TrainedRefiner(config='a.py', checkpoint='b')", r'a\.py .* does not exist'),
        ("TrainedRefiner(config='a.py')", "'checkpoint'"),
    ]:
        with pytest.raises(InputError, match=message):
            build_refiners([parse_refiner(text)], 'cpu')
