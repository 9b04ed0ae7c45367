"""Folders that the package draws itself: whole, of known settings, or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mmwsss.errors import InputError


def draw_folder(
    root: Path,
    *,
    marker_name: str,
    marker: Mapping[str, object],
    what: str,
    draw: Callable[[Path], None],
) -> bool:
    """Draw into a temporary folder and rename it, unless it is there already.

    Args:
        root: Folder to make; an empty one may be there.
        marker_name: File in it that holds the settings.
        marker: The settings, ready for JSON.
        what: The benchmark's name for messages.
        draw: Writes everything but the marker into the folder it is given.

    Returns:
        True if it was drawn, False if it was there with the same settings.

    Raises:
        InputError: ``root`` holds something else.
    """
    if root.exists():
        if _read(root / marker_name) == marker:
            return False
        if not root.is_dir() or any(root.iterdir()):
            raise InputError(
                f'{root} exists and is not {what} with {dict(marker)}: remove it or '
                'choose another folder'
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', dir=root.parent))
    try:
        scratch.chmod(0o755)
        draw(scratch)
        write_lines(scratch / marker_name, [json.dumps(marker)])
        os.replace(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file with the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ''.join(f'{line}\n' for line in lines)
    path.write_text(text, encoding='utf-8', newline='\n')


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
