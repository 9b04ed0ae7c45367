import sys
import types

import pytest

from mmwsss import compat


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compat, 'SUPPORTED', {'mm_not_there': ('1.0', None)})
    with pytest.raises(ImportError, match="'mm_not_there', which is not installed"):
        compat.check_mm_packages()


@pytest.mark.parametrize(
    ('version', 'fits'), [('1.1', True), ('0.9', False), ('2.0', False)]
)
def test_version_outside_the_range_is_named(monkeypatch, version, fits):
    module = types.ModuleType('mm_toy')
    module.__version__ = version
    monkeypatch.setitem(sys.modules, 'mm_toy', module)
    monkeypatch.setattr(compat, 'SUPPORTED', {'mm_toy': ('1.0', '2.0')})
    if fits:
        compat.check_mm_packages()
        return
    with pytest.raises(ImportError, match=f'version {version} is installed'):
        compat.check_mm_packages()


def test_known_chatter_at_import_is_not_heard_and_the_rest_is(
    monkeypatch, tmp_path, capsys, recwarn
):
    (tmp_path / 'mm_chatty.py').write_text(
        "import warnings\n__version__ = '1.1'\n"
        "warnings.warn('Fail to import ``MultiScaleDeformableAttention`` from here')\n"
        "warnings.warn('something else')\n"
        "print('Could not import OneDL')\nprint('news')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    compat._import_quietly('mm_chatty')
    assert capsys.readouterr().out == 'news\n'
    assert [str(w.message) for w in recwarn] == ['something else']
