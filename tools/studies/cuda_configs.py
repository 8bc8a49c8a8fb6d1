"""Data and configs for tools/check_cuda.py: cuda_configs.py FOLDER CONFIG...

The data sets are those of the tests, a few small pictures with 1000 proposals each. The
configs are the repository's own without pretrained weights, for ten iterations at full
image size.
"""

import sys
from pathlib import Path

import torch
from mmcv.ops import get_compiler_version, get_compiling_cuda_version, nms
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from support import small_data  # noqa: E402

from mmdet_ohem.config import dicts_of  # noqa: E402

NUM_PROPOSALS = 1000
R50 = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(train_cfg=dict(rcnn=dict(sampler=dict({sampler}))))
"""
SAMPLERS = dict(
    random_512='num=512',  # as MMDetection has it
    ohem_512="_delete_=True, type='mmdet_ohem.OHEMSampler', num=512",
    ohem_64="_delete_=True, type='mmdet_ohem.OHEMSampler', num=64",
)


def ten_iterations(path: Path) -> Config:
    """A config for ten iterations, and a test after them."""
    config = Config.fromfile(path)
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    for part in dicts_of(config._cfg_dict):
        if 'init_cfg' in part and part is not config._cfg_dict:
            part.init_cfg = None
        if 'num_workers' in part:
            part.update(num_workers=2, persistent_workers=True)
    config.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=10 * accumulated, val_interval=1000
    )
    config.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=1000, save_optimizer=False
    )
    config.default_hooks.logger.interval = 1
    config.log_processor = dict(type='LogProcessor', by_epoch=False)
    if get_compiling_cuda_version() == 'not available':  # then there is no NMS
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    print(f'PyTorch {torch.__version__}, {torch.cuda.get_device_name()}')
    print(f'mmcv: {get_compiler_version()}, CUDA {get_compiling_cuda_version()}')
    classes = [dataset.METAINFO['classes'] for dataset in (VOCDataset, CocoDataset)]
    small_data.write_everything(folder, *classes, num_proposals=NUM_PROPOSALS)
    for name in names:
        path = ROOT / 'configs' / f'{name}.py'
        ten_iterations(path).dump(folder / path.name)
    for name, sampler in SAMPLERS.items():
        (folder / f'r50_{name}.py').write_text(R50.format(sampler=sampler))

    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]]).cuda()
    print('NMS keeps', nms(boxes, boxes.new_tensor([0.9, 0.8]), 0.5)[1].tolist())


if __name__ == '__main__':
    main()
