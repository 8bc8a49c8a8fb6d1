# Multi-scale training and testing, the paper's +M, at half its sizes: the one scale of
# fast_rcnn_small_bccd.py, (400, 300), is half of the usual 800 x 600 pixels.
_base_ = 'fast_rcnn_small_bccd.py'

from mmdet_ohem.datasets import at_several_scales

globals().update(
    at_several_scales(
        _base_,
        scales=[(500, 240), (500, 288), (500, 344), (500, 432), (500, 450)],
        roi_area=112**2,  # half of 224 each way
    )
)
