"""The public names that stand in for weights which no package brings along."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmwsss.apis import WSSSInferencer
from mmwsss.apis.cli import find_sentence
from mmwsss.apis.config_names import find_config
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.pretrained_weights import KNOWN, check_pretrained, naming_pretrained
from mmwsss.command import group
from mmwsss.datasets.image_labels import save_image_labels
from mmwsss.errors import InputError, MissingWeights

pytestmark = pytest.mark.mm
NAMES = {file: name for file, (_, name) in KNOWN.items()}


@pytest.mark.parametrize('config', ['cam_mobileone_msrc', 'cam_vit_msrc'])
def test_networks_of_mmpretrain_fit_as_the_documentation_saves_them(config, tmp_path):
    from mmpretrain import get_model

    content = Config.fromfile(find_config(config))
    name = NAMES[content.model.weights.rpartition('/')[2]]
    torch.manual_seed(0)
    network = get_model(name, pretrained=False)
    if name.startswith('mobileone'):
        network.backbone.switch_to_deploy()
    tensors = network.state_dict()
    file = tmp_path / 'weights.pth'
    content.model.weights = str(file)
    init_default_scope('mmseg')

    def build():
        torch.save(tensors, file)
        check_pretrained(content)
        MODELS.build(content.model).init_weights()

    build()
    # Every tensor was asked for: without one of them it does not fit.
    tensors.pop(next(key for key in tensors if key.startswith('backbone.')))
    with pytest.raises(InputError, match='does not fit'):
        build()


def test_other_files_names_and_urls_are_left_to_those_who_load_them(tmp_path):
    file = next(iter(KNOWN))

    def check(weights):
        encoders = dict(a=dict(weights=None), b=[dict(weights=weights)])
        check_pretrained(Config(dict(model=dict(encoders=encoders))))

    with pytest.raises(InputError, match=r'--cfg-options model\.encoders\.b\.0\.weigh'):
        check(f'{tmp_path}/{file}')
    (tmp_path / file).write_text('')
    for fine in (f'{tmp_path}/{file}', 'openai', 'x/clip.pth', f'https://x/{file}'):
        check(fine)
    check_pretrained(Config(dict(model=dict(loss=dict(weights=(0.2, 0.8))))))
    check_pretrained(Config(dict(other=1)))


# ---------------------------------------------------------------------- in every verb
CLASSES = ['cat', 'sky']


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Four photos with masks, and a checkpoint that is not looked into so far."""
    monkeypatch.chdir(tmp_path)
    labels = {f'p{n}': CLASSES[: n % 3] for n in range(4)}
    save_image_labels('own/image_labels.json', CLASSES, labels)
    for number, name in enumerate(labels):
        for folder, shape in (('photos', (32, 32, 3)), ('masks', (32, 32))):
            path = Path('own', folder, f'{name}.png')
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full(shape, number % 2, np.uint8)).save(path)
    Path('own/val.txt').write_text('p2\np3\n')
    meta = {'dataset_meta': {'classes': ('background', *CLASSES)}}
    torch.save({'state_dict': {}, 'meta': meta}, 'net.pth')
    return tmp_path


def call(*words):
    result = CliRunner().invoke(group, [str(word) for word in words])
    return result, '' if result.exception is None else find_sentence(result.exception)


FROM_ENCODERS = {
    'train': (),
    'test': ('net.pth',),
    'evaluate': ('net.pth', '--out', 'out'),
    'make-cams': ('net.pth', '--out', 'out'),
    'make-pseudo-labels': ('--checkpoint', 'net.pth', '--out', 'out'),
    'export': ('net.pth', '--out', 'out.onnx'),
}


@pytest.mark.parametrize('verb', FROM_ENCODERS)
def test_every_verb_says_what_a_training_says(verb, own):
    words = FROM_ENCODERS[verb]
    _, said = call(verb, 'dual_frozen_msrc', *words, '--data', 'own')
    assert said == expected('dual_frozen_msrc')
    # So do its options, and then the file is looked at where it is loaded.
    options = [word for word in said.split() if word.startswith('model.')]
    assert len(options) == 2
    for option in options:
        torch.save({'x': torch.zeros(1)}, option.partition('=')[2])
    options = ['--cfg-options', options[0], '--cfg-options', options[1]]
    _, said = call(verb, 'dual_frozen_msrc', *words, '--data', 'own', *options)
    assert 'starts from' not in said
    assert '.pth' in said


@pytest.mark.parametrize('jobs', [1, 2])
def test_so_does_label_in_every_process(jobs, own):
    words = ['net.pth', 'own/photos', '--tags', 'own/image_labels.json']
    words += ['--out', 'out', '--jobs', jobs]
    _, said = call('label', 'dual_frozen_msrc', *words)
    assert said == expected('dual_frozen_msrc')


def test_so_do_the_doctor_and_the_python_class(own):
    result, _ = call('doctor', '--config', 'dual_frozen_msrc')
    assert result.exit_code == 1
    said, sentence = ' '.join(result.stdout.split()), expected('dual_frozen_msrc')
    missing = sentence.partition('there: ')[2].partition('; give')[0]
    options = [f'--cfg-options {w}' for w in sentence.split() if w.startswith('model.')]
    parts = [
        'Give a file or a URL of yours',
        *options,
        sentence[sentence.index('(docs') :],
    ]
    for part in [*missing.split(' and '), *parts]:
        assert part in said
    with pytest.raises(InputError) as error:
        WSSSInferencer(find_config('dual_frozen_msrc'), 'net.pth')
    assert str(error.value) == expected('dual_frozen_msrc')


def expected(config):
    """What ``check_pretrained`` says, whose own words are tested above."""
    with pytest.raises(InputError) as error:
        check_pretrained(Config.fromfile(find_config(config)))
    assert 'dual_frozen_msrc starts from weights that are not there' in str(error.value)
    return str(error.value)


def test_a_network_with_a_checkpoint_needs_no_other_weights(own):
    """Its backbone starts from such weights, which the checkpoint has trained."""
    config = find_config('cam_mobileone_msrc')
    with pytest.raises(InputError, match='starts from weights'):
        check_pretrained(Config.fromfile(config))
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(config).model)
    torch.save({'state_dict': model.state_dict()}, 'net.pth')
    load_model(Config.fromfile(config), Path('net.pth'), 'cpu')


def test_what_else_is_missing_keeps_its_sentence(tmp_path):
    file = f'{tmp_path}/{next(iter(KNOWN))}'
    config = Config(dict(model=dict(a=dict(weights=file))))
    for error in (MissingWeights('no mine.pth: give it'), InputError(f'{file} is odd')):
        with pytest.raises(type(error)) as found, naming_pretrained(config):
            raise error
        assert found.value is error
    with pytest.raises(InputError, match='the config starts from weights'):  # noqa: SIM117
        with naming_pretrained(config):
            raise MissingWeights(f'There is no weights file at {file}: give one.')
