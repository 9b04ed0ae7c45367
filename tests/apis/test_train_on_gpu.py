"""What is set up where there is a GPU, seen without one."""

from types import SimpleNamespace

import pytest
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement
from mmseg.models import SegDataPreProcessor

from mmwsss.apis.train import _copy_ahead, _pin_batches


class Recorded(BaseDataElement):
    """Remembers how it was moved."""

    def to(self, *args, **options):
        self.set_field(options, 'moved', field_type='metainfo')
        return self


@pytest.mark.parametrize('wrapped', [False, True])
def test_batches_are_copied_without_waiting(wrapped):
    model = SimpleNamespace(data_preprocessor=SegDataPreProcessor())
    runner = SimpleNamespace(model=SimpleNamespace(module=model) if wrapped else model)
    element = Recorded()
    model.data_preprocessor.cast_data([element])
    assert element.moved == {'non_blocking': False}
    _copy_ahead(runner)
    model.data_preprocessor.cast_data([element])
    assert element.moved == {'non_blocking': True}


def test_batches_are_pinned_unless_the_config_says_otherwise():
    cfg = ConfigDict(train_dataloader=dict(batch_size=2))
    _pin_batches(cfg)
    assert cfg.train_dataloader == dict(batch_size=2, pin_memory=True)
    cfg.train_dataloader.pin_memory = False
    _pin_batches(cfg)
    assert cfg.train_dataloader.pin_memory is False
    _pin_batches(ConfigDict(train_dataloader=None))
