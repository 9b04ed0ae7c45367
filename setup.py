import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r"__version__ = '([^']+)'", (ROOT / 'mmwsss/__init__.py').read_text()
).group(1)

# The maintained builds and upstream install the same import names, so neither may
# be a hard requirement: pip would put one over the other.
EXTRAS = {
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmsegmentation>=1.4.2',
        'onedl-mmpretrain>=1.3.6',
    ],
    'openmmlab': [
        'mmengine>=0.10.7',
        'mmcv>=2.0,<2.2',
        'mmsegmentation>=1.2.2',
        'mmpretrain>=1.2.0',
    ],
    'crf': ['pydensecrf2'],
    'tests': ['pytest>=7', 'pytest-xdist', 'scipy', 'ruff', 'codespell', 'pydensecrf2'],
}
EXTRAS['all'] = EXTRAS['onedl'] + EXTRAS['crf'] + EXTRAS['tests']

setup(
    name='mmwsss',
    version=VERSION,
    description='Weakly supervised semantic segmentation for MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmwsss', 'mmwsss.*']),
    package_data={
        'mmwsss': [
            'visualization/templates/*',
            'datasets/tiny_towers/*',
        ]
    },
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.0',
        'torchvision',
        'numpy',
        'packaging',
        'pillow',
        'opencv-python',
        'open_clip_torch',
        'safetensors',
        'einops',
        'ftfy',
        'regex',
        'jinja2',
        'tqdm',
        'psutil',
    ],
    extras_require=EXTRAS,
)
