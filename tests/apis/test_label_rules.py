import json
from pathlib import Path

import pytest
import torch

from mmwsss.apis.label_rules import BackgroundRule, build_refiners, parse_refiner
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


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
        'best',
        'best:',
        'best*2',
        'best2:a.json',
        'best*0:a.json',
        'best*nan:a.json',
    ],
)
def test_other_rules_are_refused(text):
    with pytest.raises(InputError, match='is none of: a number') as caught:
        BackgroundRule.parse(text)
    assert '\n' not in str(caught.value)


def test_the_best_threshold_of_an_evaluation_is_a_rule(tmp_path):
    path = tmp_path / 'my:scores.json'
    best = {'threshold': 0.135, 'images': 9}
    path.write_text(json.dumps({'policies': {'best': best}}))
    rule = BackgroundRule.parse(f'best:{path}')
    assert rule == BackgroundRule.parse('0.135')
    assert str(rule) == '0.135'
    source = f'the best on the 9 images of {path}'
    assert rule.described == f'0.135 ({source})'
    assert BackgroundRule.parse('0.135').described == '0.135'
    for factor, value in (('2', 0.27), ('0.333', 0.044955), ('9', 1.0)):
        rule = BackgroundRule.parse(f'best*{factor}:{path}')
        assert (rule.kind, rule.value) == ('threshold', value)
        assert rule.described == f'{value:g} ({factor} times {source})'
        assert BackgroundRule.parse(str(rule)) == rule
    for text, message in (('{}', 'holds no best threshold'), (None, 'does not exist')):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(InputError, match=message):
            BackgroundRule.parse(f'best:{path}')


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


def test_otsus_background_parts_each_photo():
    rule = BackgroundRule.parse('otsu')
    assert str(rule) == rule.described == 'otsu'
    cams = torch.tensor([[[0.1, 0.12], [0.5, 0.55]], [[0.1, 0.0], [0.0, 0.0]]])
    for scale in (1.0, 0.3):
        label = rule.scores(scale * cams, None).argmax(1)[0]
        assert label.tolist() == [[0, 0], [1, 1]]
    empty = rule.scores(torch.zeros(2, 3, 3), None)
    assert not empty.argmax(1).any()


def test_refiners_are_read_as_literals():
    assert parse_refiner('PAMR') == {'type': 'mmwsss.PAMR'}
    assert parse_refiner(' PAR(num_iters=3, dilations=[1, 2]) ') == {
        'type': 'mmwsss.PAR',
        'num_iters': 3,
        'dilations': [1, 2],
    }
    text = "TrainedRefiner(checkpoint='b', cfg_options={'model.x': 0.3})"
    assert parse_refiner(text)['cfg_options'] == {'model.x': 0.3}


def test_the_config_of_a_trained_refiner_has_a_name(tmp_path, monkeypatch):
    """From anywhere, as for the verbs; a work directory has its own."""
    monkeypatch.chdir(tmp_path)
    for name in ('irnet_msrc', 'configs/irnet_msrc.py'):
        found = parse_refiner(f"TrainedRefiner(config={name!r}, checkpoint='b')")
        assert found == {
            'type': 'mmwsss.TrainedRefiner',
            'config': str(ROOT / 'configs/irnet_msrc.py'),
            'checkpoint': 'b',
        }
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/mine.py').write_text('a = 1')
    assert parse_refiner("TrainedRefiner(config='run')")['config'] == 'run/mine.py'
    with pytest.raises(InputError, match='did you mean irnet_msrc'):
        parse_refiner("TrainedRefiner(config='irnet_mrsc', checkpoint='b')")


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
        ("TrainedRefiner(config='a.py', checkpoint='b')", r'neither a file a\.py'),
        ("TrainedRefiner(config='irnet_msrc')", "'checkpoint'"),
    ]:
        with pytest.raises(InputError, match=message):
            build_refiners([parse_refiner(text)], 'cpu')
