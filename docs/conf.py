"""Sphinx, MyST and furo:  sphinx-build -W -b html docs build/docs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = 'mmwsss'
author = 'the mmwsss authors'
copyright = author

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['requirements.txt']
html_theme = 'furo'
html_title = 'mmwsss'
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3

autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_numpy_docstring = False

_LITERAL = re.compile(r'(``.+?``)')


def _escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Absolute values in docstrings are no substitutions of reStructuredText."""
    for number, line in enumerate(lines):
        parts = _LITERAL.split(line)
        parts[::2] = [part.replace('|', r'\|') for part in parts[::2]]
        lines[number] = ''.join(parts)


def setup(app) -> None:
    """Before napoleon, whose priority is the default of 500."""
    app.connect('autodoc-process-docstring', _escape_bars, priority=400)
