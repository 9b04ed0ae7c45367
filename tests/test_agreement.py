"""A short form of the table of docs/faults.md, see tests/agreement.py."""

import agreement
import pytest

pytestmark = [pytest.mark.mm, pytest.mark.slow]


def test_processes_workers_and_seeds_agree():
    rows = agreement.compare(
        ['classifier', 'classifier_with_batch_norms'],
        iterations=2,
        seed=0,
        processes=(2,),
        workers=(2,),
    )
    found = {(row['work'], row['run']): row for row in rows}
    assert len(found) == 2 * 3
    for work in ('classifier', 'classifier_with_batch_norms'):
        for run in ('the same seed again', '2 workers'):
            row = found[work, run]
            figures = [v for v in row.values() if not isinstance(v, str)]
            assert figures == [0, 0, 0, None], (work, run)
    row = found['classifier', '2 processes']
    assert 0 < max(row['losses'], row['weights']) < 1e-6
    # What the figures are worth: each process sees the statistics of its own photos.
    row = found['classifier_with_batch_norms', '2 processes']
    assert row['losses'] > 1e-4
    assert '| classifier | 2 workers | 0 | 0 | 0 |  |' in agreement.table(rows)
