# Multi-scale training as in the paper; testing stays at one scale. The paper does not
# give the limit of the longer side; 1000 is that of the code.
_base_ = 'rfcn_r50_voc0712.py'

from mmdet_ohem.datasets import at_several_scales

train_dataloader = at_several_scales(
    _base_, scales=[(1000, side) for side in (400, 500, 600, 700, 800)]
)['train_dataloader']
