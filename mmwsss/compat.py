"""One check, made when mmwsss.models is imported: which mm packages are there.

Upstream and its maintained builds (onedl-*) install the same import names under
other distribution names, so the check asks the modules, not the metadata.
"""

import importlib
import io
import warnings
from contextlib import redirect_stdout

from packaging.version import InvalidVersion, Version

# import name: (lowest version, first version that is too new or None)
SUPPORTED = {
    'mmengine': ('0.10.4', None),
    'mmcv': ('2.0.0', None),
    'mmseg': ('1.2.2', None),
    'mmpretrain': ('1.2.0', None),
}
# Of which packages a part says something when it is imported that nobody can act on.
_CHATTY = {
    'mmcv': 'mmcv.cnn.bricks.transformer',
    'mmseg': 'mmseg.datasets',
    'mmpretrain': 'mmpretrain.datasets',
}
_CHATTER = 'Could not import OneDL'
INSTALL = "pip install 'mmwsss[onedl]' (from a checkout: pip install -e '.[onedl]')"


def check_mm_packages() -> None:
    """Raise ImportError with one sentence when an mm package is unusable."""
    for name, (lowest, too_new) in SUPPORTED.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ImportError(
                f'mmwsss needs the package {name!r}, which is not installed; '
                f'run: {INSTALL}'
            ) from None
        _check_version(name, module.__version__, lowest, too_new)
        if name in _CHATTY:
            _import_quietly(_CHATTY[name])


def _import_quietly(name: str) -> None:
    """Import a module without the lines that every command would begin with."""
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said):
        # Of mmcv-lite; nothing here needs its operators.
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDef')
        importlib.import_module(name)
    for line in said.getvalue().splitlines():
        if line != _CHATTER:
            print(line)


def _check_version(name: str, found: str, lowest: str, too_new: str | None) -> None:
    try:
        version = Version(found)
    except InvalidVersion:
        return
    if version < Version(lowest) or (too_new and version >= Version(too_new)):
        bound = f'>={lowest}' + (f',<{too_new}' if too_new else '')
        raise ImportError(
            f'mmwsss supports {name} {bound}, but version {found} is installed; '
            f'run: {INSTALL}'
        )
