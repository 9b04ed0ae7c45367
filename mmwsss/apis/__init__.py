"""The functions behind the command line tools, and ``WSSSInferencer``.

The class is imported when it is asked for: it needs torch and the mm packages, which
most of what lies here shall not wait for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmwsss.apis.inferencer import WSSSInferencer

__all__ = ['WSSSInferencer']


def __getattr__(name: str) -> object:
    """``WSSSInferencer``, on demand."""
    if name == 'WSSSInferencer':
        from mmwsss.apis.inferencer import WSSSInferencer

        return WSSSInferencer
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
