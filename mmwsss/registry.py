"""Registry nodes of mmwsss; write our types in configs as ``mmwsss.Name``.

This module imports mmengine and nothing else: an ImportError raised in here is
swallowed by mmengine and would surface as "not in the registry".
"""

from mmengine.registry import DATA_SAMPLERS as _DATA_SAMPLERS
from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import LOOPS as _LOOPS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import TRANSFORMS as _TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=_MODELS, scope='mmwsss', locations=['mmwsss.models'])
DATASETS = Registry(
    'dataset', parent=_DATASETS, scope='mmwsss', locations=['mmwsss.datasets']
)
DATA_SAMPLERS = Registry(
    'data sampler', parent=_DATA_SAMPLERS, scope='mmwsss', locations=['mmwsss.datasets']
)
TRANSFORMS = Registry(
    'transform', parent=_TRANSFORMS, scope='mmwsss', locations=['mmwsss.datasets']
)
HOOKS = Registry('hook', parent=_HOOKS, scope='mmwsss', locations=['mmwsss.engine'])
LOOPS = Registry('loop', parent=_LOOPS, scope='mmwsss', locations=['mmwsss.engine'])
METRICS = Registry(
    'metric', parent=_METRICS, scope='mmwsss', locations=['mmwsss.evaluation']
)
