"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    'functional': {'functional'},
    'datasets': {'datasets', 'errors', 'registry', 'compat', 'files'},
    'models': {
        'models',
        'functional',
        'errors',
        'registry',
        'compat',
        'files',
        'checkpoints',
    },
}


def imports(path):
    """Absolute names of everything a file imports."""
    package = ('mmwsss', *path.relative_to(ROOT / 'mmwsss').parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield '.'.join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize('layer', ALLOWED)
def test_imports_go_one_way(layer):
    for path in sorted((ROOT / 'mmwsss' / layer).rglob('*.py')):
        for name in imports(path):
            parts = name.split('.')
            if parts[0] == 'mmwsss' and len(parts) > 1:
                assert parts[1] in ALLOWED[layer], f'{path} imports {name}'


def test_functional_needs_torch_alone():
    known = {'torch', 'mmwsss'} | set(sys.stdlib_module_names)
    for path in (ROOT / 'mmwsss/functional').rglob('*.py'):
        # Imported where they are used, and done without where Triton is missing.
        more = {'triton'} if path.parent.name == 'kernels' else set()
        for name in imports(path):
            assert name.split('.')[0] in known | more, f'{path} imports {name}'


def test_importing_the_package_loads_nothing():
    code = 'import sys, mmwsss; print(mmwsss.__version__, "torch" in sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert result.stdout.split()[1] == 'False'
