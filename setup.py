import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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
    # Its C++ sources are generated for Python up to 3.12.
    'crf': ['pydensecrf2; python_version < "3.13"'],
    # torch.onnx.export of today's torch works through onnxscript.
    'export': ['onnx>=1.17', 'onnxscript>=0.3', 'onnxruntime>=1.20'],
    'docs': ['sphinx>=8', 'myst-parser', 'furo'],
    'tests': [
        *('pytest>=7', 'pytest-xdist', 'scipy', 'ruff', 'codespell', 'mypy'),
        *('setuptools>=70.1', 'pycocotools', 'hypothesis>=6.100'),
    ],
}
EXTRAS['tests'] += EXTRAS['crf'] + EXTRAS['export'] + EXTRAS['docs']
EXTRAS['all'] = EXTRAS['onedl'] + EXTRAS['tests']

# What a wheel has in mmwsss/.mim, where OpenMMLab's tools look for it.
SHIPPED = ('configs/**/*.py', 'configs/*.yml', 'tools/*.py', 'model-index.yml')


class BuildWithConfigs(build_py):
    """Copies configs and tools into the package that is built, not into the source."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmwsss/.mim'
        # Of an earlier build, with files that are no longer there.
        shutil.rmtree(target, ignore_errors=True)
        for pattern in SHIPPED:
            for source in ROOT.glob(pattern):
                copy = target / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


setup(
    name='mmwsss',
    version=VERSION,
    description='Weakly supervised semantic segmentation for MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmwsss', 'mmwsss.*']),
    cmdclass={'build_py': BuildWithConfigs},
    entry_points={'console_scripts': ['mmwsss = mmwsss.command:main']},
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
        'click>=8.0',
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
