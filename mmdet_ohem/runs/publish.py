"""A trained detector to hand on: weights alone, with config, log and a model card."""

import json
import os
import shutil
from pathlib import Path

from mmengine.config import Config

from mmdet_ohem.checkpoint import load_checked, save_checkpoint
from mmdet_ohem.config import inner_datasets, rcnn_stages
from mmdet_ohem.datasets import content_hash
from mmdet_ohem.visualization import read_log

# Of MMEngine's `meta`; the rest is of the run: its history, random states, times.
KEPT_META = ('cfg', 'dataset_meta', 'epoch', 'iter', 'mmengine_version')


def publish(checkpoint: str | os.PathLike, out: str | os.PathLike, name: str) -> Path:
    """Write a folder ``out/name-HASH`` that `load_detector` takes.

    It holds ``name-HASH.pth``, which PyTorch loads with weights_only and no class
    allowed, ``config.py``, ``log.json`` (what MMEngine logged, a line for each entry)
    and ``README.md``, the model card. HASH is the first 8 digits of the file's SHA-256,
    as PyTorch's downloads check it.

    Args:
        checkpoint: of MMEngine, in the work dir of its training.
        out: folder of published detectors.
        name: of this one.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is no checkpoint of MMEngine with a config.
        FileExistsError: it is published there.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f'There is no checkpoint {checkpoint}.')
    weights = _weights_alone(checkpoint)
    out = Path(out)
    partial = out / f'{name}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_checkpoint(weights, partial / 'weights.pth')
        digest = content_hash(partial / 'weights.pth')
        full_name = f'{name}-{digest[:8]}'
        (partial / 'weights.pth').rename(partial / f'{full_name}.pth')
        (partial / 'config.py').write_text(weights['meta']['cfg'])
        lines = [line for start in read_log(checkpoint.parent) for line in start]
        (partial / 'log.json').write_text(''.join(f'{json.dumps(x)}\n' for x in lines))
        scores = _scores(checkpoint, weights['meta'], lines)
        (partial / 'README.md').write_text(_card(full_name, weights, scores))
        folder = out / full_name
        if folder.exists():
            raise FileExistsError(f'{folder} exists: these weights are published.')
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def published_files(folder: str | os.PathLike) -> tuple[Config, Path]:
    """The config and the weights of a folder that `publish` wrote.

    Raises:
        ValueError: it is no such folder, or the weights are not those of the name.
    """
    folder = Path(folder)
    weights = folder / f'{folder.name}.pth'
    if not weights.is_file() or not (folder / 'config.py').is_file():
        raise ValueError(
            f'{folder} has no {folder.name}.pth with a config.py: give a folder that '
            'tools/publish.py wrote, under the name that it had.'
        )
    digest = content_hash(weights)
    if not folder.name.endswith(f'-{digest[:8]}'):
        raise ValueError(
            f'{weights} is damaged, its SHA-256 begins with {digest[:8]}: fetch it '
            'again.'
        )
    return Config.fromfile(folder / 'config.py'), weights


def _weights_alone(checkpoint: Path) -> dict:
    try:
        loaded = load_checked(str(checkpoint))
        state, meta = loaded['state_dict'], loaded['meta']
        meta = {key: meta[key] for key in KEPT_META if key in meta}
        Config.fromstring(meta['cfg'], '.py')
    # PyTorch raises whatever its parser trips over in a broken file.
    except Exception as error:
        raise ValueError(
            f'{checkpoint} is no checkpoint of a training with its config '
            f'({type(error).__name__}): give an iter_N.pth or epoch_N.pth.'
        ) from error
    # Of MMEngine's EMAHook state_dict holds the means, which are to be used.
    state = {key: value.detach().cpu().clone() for key, value in state.items()}
    return dict(state_dict=state, meta=meta)


def _scores(checkpoint: Path, meta: dict, lines: list[dict]) -> dict[str, float]:
    """What the validation of this checkpoint gave, or the test of a comparison."""
    steps = {meta.get('iter'), meta.get('epoch')}
    for line in reversed(lines):
        # COCO's -1 is that of a size which no object has.
        scores = {
            key: value
            for key, value in line.items()
            if 'mAP' in key and isinstance(value, float) and value >= 0
        }
        if scores and line.get('step') in steps:
            return scores
    result = checkpoint.parent / 'result.json'
    last = checkpoint.parent / 'last_checkpoint'
    if result.is_file() and last.is_file():
        if Path(last.read_text().strip()).name == checkpoint.name:
            content = json.loads(result.read_text())
            return {content['metric']: content['mAP']}
    return {}


def _card(name: str, weights: dict, scores: dict[str, float]) -> str:
    meta = weights['meta']
    config = Config.fromstring(meta['cfg'], '.py')
    samplers = [s['sampler'] for s in rcnn_stages(config.model) if 'sampler' in s]
    lists = {
        loop: ', '.join(
            str(Path(part.get('data_root') or '', part.get('ann_file') or ''))
            for part in inner_datasets(config[f'{loop}_dataloader'].dataset)
        )
        for loop in ('train', 'test')
        if config.get(f'{loop}_dataloader')
    }
    num = sum(value.numel() for value in weights['state_dict'].values())
    rows = {
        'detector': config.model.type,
        'classes': ', '.join(meta.get('dataset_meta', {}).get('classes', ())),
        'sampler': '; '.join(
            f'{sampler.type}, num={sampler.get("num")}' for sampler in samplers
        ),
        'trained on': lists.get('train', ''),
        'tested on': lists.get('test', ''),
        'iterations': meta.get('iter', ''),
        'seed': (config.get('randomness') or {}).get('seed', ''),
        **scores,
        'numbers in the weights': f'{num:,}',
    }
    table = ''.join(f'| {key} | {value} |\n' for key, value in rows.items())
    unknown = (
        ''
        if scores
        else '\nNo mAP was logged for this checkpoint; run tools/test.py for it.\n'
    )
    return f"""# {name}

| | |
|---|---|
{table}{unknown}
With mmdet_ohem installed, detect objects in pictures, or load the detector in Python:

```sh
python tools/demo.py PICTURES --config {name}/config.py --checkpoint {name}/{name}.pth
```

```python
from mmdet_ohem.runs import load_detector

detector = load_detector('{name}')
```
"""
