"""The quickstart: draw a benchmark, train on its image labels, score, report."""

import argparse
import sys
import time
from pathlib import Path

from mmwsss.apis.stages import (
    Stage,
    available_cores,
    format_seconds,
    run_stages,
)
from mmwsss.errors import InputError

CONFIG = 'configs/clipdino_refine_synth.py'


def quickstart_stages(
    root: Path, *, config: str = CONFIG, work_dir: Path, data_root: Path
) -> list[Stage]:
    """The four steps as plain tool calls.

    Args:
        root: The repository's root.
        config: Config to train, relative to the root.
        work_dir: Receives checkpoints, numbers, pictures and the report.
        data_root: Where the drawn photos lie; the config's ``data_root``.
    """
    python = sys.executable
    tools = root / 'tools'
    bases = root / 'configs' / '_base_'
    towers = root / 'mmwsss' / 'datasets' / 'tiny_towers'
    results = work_dir / 'evaluation'
    return [
        Stage(
            name='draw the synthetic photos',
            command=[python, str(tools / 'make_synthetic.py'), str(data_root)],
            inputs=[root / 'mmwsss' / 'datasets' / 'synthetic.py'],
            outputs=[data_root / 'image_labels.json'],
        ),
        Stage(
            name='train on image labels',
            command=[
                python,
                str(tools / 'train.py'),
                str(root / config),
                '--work-dir',
                str(work_dir),
            ],
            inputs=[root / config, bases, towers],
            outputs=[work_dir / 'last_checkpoint'],
            resume=['--resume'],
            stale=[work_dir / 'last_checkpoint'],
        ),
        Stage(
            name='score',
            command=[
                python,
                str(tools / 'evaluate.py'),
                str(root / config),
                str(work_dir),
                '--out',
                str(results),
            ],
            inputs=[
                root / 'mmwsss' / 'evaluation',
                root / 'mmwsss' / 'apis' / 'evaluate.py',
            ],
            outputs=[results / 'metrics.json'],
        ),
        Stage(
            name='write the report',
            command=[
                python,
                str(tools / 'report.py'),
                str(results),
                '--run',
                str(work_dir),
            ],
            inputs=[root / 'mmwsss' / 'visualization'],
            outputs=[results / 'report.html'],
        ),
    ]


def main() -> int:
    """Run the quickstart from the repository's root."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'))
    args = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    if not (root / args.config).is_file():
        raise InputError(
            f'{root / args.config} does not exist; the quickstart runs from a clone '
            'of the repository, or name another config with --config'
        )
    print(f'mmwsss quickstart on {available_cores()} cores; Ctrl-C stops, ', end='')
    print('the same command goes on.', flush=True)
    begin = time.monotonic()
    # Drawn where the config will look for them.
    stages = quickstart_stages(
        root,
        config=args.config,
        work_dir=args.work_dir,
        data_root=_data_root(root / args.config),
    )
    run_stages(stages, args.work_dir / 'stages.json')
    report = (args.work_dir / 'evaluation' / 'report.html').resolve()
    print(f'\nFinished in {format_seconds(time.monotonic() - begin)}. ', end='')
    print(f'Open the report in a browser:\n  {report}')
    return 0


def _data_root(config: Path) -> Path:
    from mmwsss.apis.config_files import read_config_file

    found = read_config_file(config, imports=False).get('data_root')
    if not isinstance(found, str):
        raise InputError(f'{config} names no data_root; give a config that does')
    return Path(found)


if __name__ == '__main__':
    from mmwsss.apis.cli import run_tool

    run_tool(main)
