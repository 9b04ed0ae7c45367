"""Opens every photo of a folder, as training would, in several processes."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.transforms import read_photo
from mmwsss.errors import InputError
from mmwsss.files import write_text

NAMED = 3  # photos that a sentence names
CHUNK = 16  # photos that a process takes at once


def check_photos(
    folder: Path, *, workers: int, list_file: Path | None = None
) -> tuple[int, list[str]]:
    """Decode every photo below a folder to its last pixel.

    Args:
        folder: with photos, also in subfolders.
        workers: processes; 1 opens them in this one.
        list_file: receives the ids of those that cannot be read, one a line.

    Returns:
        The number of photos, and one sentence if any cannot be read, with how many
        and the first ones' names.

    Raises:
        InputError: for fewer than one worker, or if the list cannot be written.
    """
    if workers < 1:
        raise InputError(f'--workers must be 1 or more, got {workers}')
    try:
        photos = find_photos(folder)
    except InputError as error:
        return 0, [str(error)]
    complaints = _complaints([str(folder / file) for _, file in photos], workers)
    progress = tqdm(complaints, total=len(photos), unit='photo', disable=None)
    broken = {
        photo: complaint
        for photo, complaint in zip(photos, progress, strict=True)
        if complaint
    }
    if list_file is not None:
        write_text(list_file, ''.join(f'{image_id}\n' for image_id, _ in broken))
    if not broken:
        return len(photos), []
    shown = ', '.join(file for _, file in list(broken)[:NAMED])
    more = f' and {len(broken) - NAMED} more' if len(broken) > NAMED else ''
    return len(photos), [
        f'{len(broken)} of {len(photos)} photos in {folder.absolute()} cannot be read: '
        f'{shown}{more}; replace them or take them out of the lists '
        f'(the first: {next(iter(broken.values()))})'
    ]


def _complaints(paths: Sequence[str], workers: int) -> Iterator[str | None]:
    """What is wrong with each photo, in order; None for a good one."""
    workers = min(workers, -(-len(paths) // CHUNK))
    if workers < 2:
        yield from map(_complaint, paths)
        return
    # Forked processes start at once; importing everything anew takes them seconds.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if 'fork' in methods else None)
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from pool.map(_complaint, paths, chunksize=CHUNK)
    except BrokenProcessPool:
        raise InputError(
            'a process that opened photos was killed, probably for want of memory; '
            f'try again with fewer --workers than {workers}'
        ) from None
    finally:
        # After Ctrl-C nobody waits for the photos that are still to be opened.
        pool.shutdown(wait=False, cancel_futures=True)


def _complaint(path: str) -> str | None:
    try:
        read_photo(path)
    except Exception as error:
        # Whatever a decoder raises, the other photos shall be looked at too.
        return str(error).partition('; ')[0] or type(error).__name__
    return None
