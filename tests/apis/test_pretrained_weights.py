"""The public names that stand in for weights which no package brings along."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmwsss.apis.config_names import find_config
from mmwsss.apis.pretrained_weights import KNOWN, check_pretrained
from mmwsss.errors import InputError

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
