"""No file from outside does worse than be refused.

A minute of the processor; with MMDET_OHEM_FUZZ=1000 (`make fuzz`), 1000 cases of each
reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tools import ROOT

CAMPAIGN = Path(__file__).with_name('campaign.py')
CASES = int(os.environ.get('MMDET_OHEM_FUZZ', 50))  # of each reader
NAMES = (
    *(
        'mat',
        'mat_of_an_image',
        'mcg',
        'dump',
        'store',
        'old_store',
        'caffemodel',
        'voc',
        'coco',
        'labelled_voc',
        'labelled_coco',
    ),
    *('image', 'list', 'checkpoint', 'weights'),
)


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> dict[str, dict]:
    """By reader. The process is a new one: in this one OpenCV may have started
    threads, and forks of it would wait for them for ever."""
    out = tmp_path_factory.mktemp('campaign') / 'results.json'
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), '--cases', str(CASES), '--out', str(out)],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
    )
    assert done.returncode == 0
    results = {result['reader']: result for result in json.loads(out.read_text())}
    assert set(results) == set(NAMES)
    return results


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
@pytest.mark.parametrize('name', NAMES)
def test_damaged_files_are_read_right_or_refused(results, name):
    result = results[name]
    assert sum(result['counts'].values()) == CASES
    for failure in result['failures']:
        print(
            f'{CAMPAIGN} --readers {name} --case {failure["case"]}: {failure["word"]}'
        )
        print(failure['story'])
    assert not result['failures']
