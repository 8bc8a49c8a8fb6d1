"""`import mmdet_ohem` registers parts and changes nothing else in the process."""

import json
import subprocess
import sys

PROBE = """
import hashlib, json, os, pickle, random, sys, warnings

import mmcv.ops
import mmdet.datasets, mmdet.engine, mmdet.evaluation, mmdet.models, mmdet.visualization
import mmengine.registry, mmengine.runner
import numpy as np
import torch
from mmdet.models import layers
from mmengine.registry import root
from mmengine.runner import CheckpointLoader


def of_registries():
    found = {}
    for name, registry in vars(root).items():
        if isinstance(registry, mmengine.registry.Registry):
            todo = [registry]
            while todo:
                one = todo.pop()
                found[f'{one.scope}.{name}'] = sorted(one.module_dict)
                todo += [c for s, c in one.children.items() if s != 'mmdet_ohem']
    return found


def digest(value):
    return hashlib.sha256(pickle.dumps(value)).hexdigest()


def state():
    return dict(
        registries=of_registries(),
        loaders={k: v.__qualname__ for k, v in CheckpointLoader._schemes.items()},
        warnings=[str(one) for one in warnings.filters],
        random=digest(random.getstate()),
        numpy=digest(np.random.get_state()[1].tolist()),
        torch=digest(torch.get_rng_state().tolist()),
        threads=[torch.get_num_threads(), torch.get_num_interop_threads()],
        defaults=[str(torch.get_default_dtype()), torch.is_grad_enabled()],
        environment=dict(os.environ),
        path=list(sys.path),
        scope=str(mmengine.registry.DefaultScope.get_current_instance()),
    )


before = state()
import mmdet_ohem
for room in ROOMS:
    __import__(f'mmdet_ohem.{room}')
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""


def changes(rooms: list[str]) -> list[str]:
    code = PROBE.replace('ROOMS', repr(rooms))
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_changes_nothing():
    assert changes([]) == []
