import os
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

# The tests are of the CPU, also where there is a GPU: processes side by side would want
# one each, and equal runs agree on it but for rounding. Those of the GPU run by
# themselves, `pytest -m cuda`. PyTorch looks when it is imported.
if 'cuda' not in sys.argv:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

from mmengine.registry import init_default_scope  # noqa: E402
from support.forked_tools import ToolServer  # noqa: E402
from support.tools import run_tool_here, spare_configs_their_time  # noqa: E402

from mmdet_ohem.proposals import write_store  # noqa: E402

spare_configs_their_time()


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first, so that two workers end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def mmdets_scope() -> None:
    """A Runner of another scope leaves it behind for the whole process."""
    init_default_scope('mmdet')


@pytest.fixture(scope='session')
def lookalikes(tmp_path_factory) -> Path:
    """The demo's data set, 6 + 4 images, with Selective Search proposals. It is one for
    all workers, so nothing may be written there."""
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    root = folder / 'data' / 'lookalikes'
    with FileLock(folder / 'lookalikes.lock'):
        if not (root / 'proposals').exists():
            count = ('--num-train', 6, '--num-test', 4)
            run_tool_here('tools/make_lookalikes.py', root, *count)
            run_tool_here(
                *('tools/prepare_proposals.py', 'selective-search'),
                *('--images', root / 'JPEGImages', '--out', root / 'proposals'),
            )
    return root


@pytest.fixture(scope='session')
def server(tmp_path_factory) -> ToolServer:
    """Starts tools and shell scripts as processes that need no imports."""
    server = ToolServer(tmp_path_factory.mktemp('server'))
    yield server
    server.close()


@pytest.fixture
def store(tmp_path) -> Path:
    """Three images, given in an order that is not that of their ids."""
    records = [
        ('000009', np.array([[5, 6, 50, 60], [1, 2, 30, 40]]), (80, 70)),
        ('000001', np.array([[0, 0, 99, 49]]), (100, 50)),
        ('zebra', np.zeros((0, 4)), (10, 20)),
    ]
    write_store(tmp_path / 'store', records, source='by hand')
    return tmp_path / 'store'
