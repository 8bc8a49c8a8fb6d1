"""The two backbones of the paper. Both end at conv5's ReLU, stride 16.

Caffe's max pooling rounds the size of its output up: `ceil_mode`.
"""

from mmcv.cnn import VGG
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ohem.registry import MODELS

# For training from scratch, or before pretrained weights replace it.
_FROM_SCRATCH = dict(type='Kaiming', layer='Conv2d')


def _check_frozen_stages(frozen_stages: int, most: int) -> None:
    if not 0 <= frozen_stages <= most:
        raise ValueError(
            f'backbone.frozen_stages must lie in 0 to {most}, got {frozen_stages}.'
        )


@MODELS.register_module()
class VGG16(VGG, BaseModule):
    """VGG16 up to conv5_3: (N, 3, H, W) to a tuple of one (N, 512, H', W').

    The layers are mmcv's `features.0` to `features.29`, numbered as in
    torchvision's weight file.

    Args:
        frozen_stages (int): stages that are not trained. 2, as in Fast R-CNN,
            are conv1_1 to conv2_2. Use 0 where nothing pretrained is loaded.
        init_cfg (dict | list[dict], optional): with None the weights are
            random (Kaiming).
    """

    def __init__(
        self, frozen_stages: int = 2, init_cfg: dict | list[dict] | None = None
    ) -> None:
        _check_frozen_stages(frozen_stages, most=5)
        super().__init__(
            depth=16,
            out_indices=(4,),
            frozen_stages=frozen_stages,
            ceil_mode=True,
            with_last_pool=False,
        )
        self.init_cfg = init_cfg or _FROM_SCRATCH
        # mmcv freezes in train(), which would come after the optimizer and DDP
        # have listed the trainable parameters.
        self.train()

    def init_weights(self) -> None:
        # mmcv's own init_weights knows no init_cfg.
        super(VGG, self).init_weights()

    def train(self, mode: bool = True) -> 'VGG16':
        super().train(mode)
        return self  # mmcv's returns None

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


@MODELS.register_module()
class VGGCNNM1024(BaseModule):
    """VGG_CNN_M_1024 up to conv5: (N, 3, H, W) to a tuple of one (N, 512, H', W').

    From "Return of the Devil in the Details", Chatfield et al., BMVC 2014, as
    Fast R-CNN uses it; layers bear the names of its Caffe model. The 1024 is
    the width of fc7, which belongs to the head.

    Args:
        frozen_stages (int): convolutions that are not trained. 1, as in Fast
            R-CNN, is conv1. Use 0 where nothing pretrained is loaded.
        init_cfg (dict | list[dict], optional): with None the weights are
            random (Kaiming).
    """

    def __init__(
        self, frozen_stages: int = 1, init_cfg: dict | list[dict] | None = None
    ) -> None:
        _check_frozen_stages(frozen_stages, most=5)
        super().__init__(init_cfg=init_cfg or _FROM_SCRATCH)
        self.conv1 = nn.Conv2d(3, 96, kernel_size=7, stride=2)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, stride=2, padding=1)
        self.conv3 = nn.Conv2d(256, 512, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(512, 512, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(512, 512, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        # Both Caffe and PyTorch divide alpha by the size.
        self.norm = nn.LocalResponseNorm(size=5, alpha=0.0005, beta=0.75, k=2)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        for i in range(1, frozen_stages + 1):
            getattr(self, f'conv{i}').requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.relu(self.conv5(x))
        return (x,)
