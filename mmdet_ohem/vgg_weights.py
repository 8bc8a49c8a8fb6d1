"""ImageNet weights for VGG16 and its head, from torchvision's file."""

import os
from urllib.parse import urlparse

import torch
from mmengine.model import update_init_info
from torch import Tensor, nn

from mmdet_ohem.registry import WEIGHT_INITIALIZERS

TORCHVISION_VGG16 = 'https://download.pytorch.org/models/vgg16-397923af.pth'

# First part of our parameter names: its name in torchvision's file.
_NAME_IN_FILE = dict(features='features', fc6='classifier.0', fc7='classifier.3')


@WEIGHT_INITIALIZERS.register_module()
class TorchvisionVGG16:
    """Copies torchvision's VGG16 into a VGG16 backbone or a VGGBBoxHead.

    For `init_cfg`: `dict(type='mmdet_ohem.TorchvisionVGG16')`. MMEngine's
    'Pretrained' renames no layers and goes on when some are missing.

    Args:
        checkpoint (str): path of the file, or an https URL, which is
            downloaded once into the cache of torch.hub.
    """

    def __init__(self, checkpoint: str = TORCHVISION_VGG16) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Fills every parameter of `features`, `fc6` and `fc7` in `module`.

        Raises:
            ValueError: the file is no checkpoint or does not fit the module.
            OSError: the file is missing or cannot be downloaded.
        """
        targets = {
            f'{_NAME_IN_FILE[part]}.{rest}': parameter
            for name, parameter in module.named_parameters()
            for part, _, rest in [name.partition('.')]
            if part in _NAME_IN_FILE
        }
        if not targets:
            raise ValueError(
                f'TorchvisionVGG16 in the init_cfg of {type(module).__name__} has '
                'nothing to fill there: it serves VGG16 and VGGBBoxHead only.'
            )
        weights = _read(self.checkpoint)
        for name, parameter in targets.items():
            _check_fits(name, parameter, weights, self.checkpoint, module)
        with torch.no_grad():
            for name, parameter in targets.items():
                parameter.copy_(weights[name])
        if hasattr(module, '_params_init_info'):  # MMEngine's log of who set what
            update_init_info(module, f'TorchvisionVGG16 from {self.checkpoint}')


def _check_fits(
    name: str, parameter: Tensor, weights: dict, checkpoint: str, module: nn.Module
) -> None:
    if not isinstance(weights.get(name), Tensor):
        raise ValueError(
            f"{checkpoint} has no weights '{name}': give torchvision's VGG16, "
            f'{TORCHVISION_VGG16}'
        )
    if weights[name].shape != parameter.shape:
        raise ValueError(
            f"'{name}' in {checkpoint} has the shape {tuple(weights[name].shape)}, "
            f'but {type(module).__name__} needs {tuple(parameter.shape)}: use the '
            'sizes of VGG16 or leave its init_cfg out.'
        )


def _read(checkpoint: str) -> dict[str, Tensor]:
    scheme = urlparse(checkpoint).scheme
    if scheme == 'https':
        checkpoint = _download(checkpoint)
    elif '://' in checkpoint:
        raise ValueError(
            f'checkpoint {checkpoint} in init_cfg is neither a path nor an https '
            f'URL: give the path of the file, or {TORCHVISION_VGG16}'
        )
    checkpoint = os.path.expanduser(checkpoint)
    if not os.path.isfile(checkpoint):
        raise FileNotFoundError(
            f'{checkpoint}, the checkpoint in init_cfg, does not exist: download '
            f'{TORCHVISION_VGG16} to that place, or set init_cfg=None and '
            'frozen_stages=0 to train from scratch.'
        )
    try:
        weights = torch.load(checkpoint, map_location='cpu', weights_only=True)
    except OSError:
        raise  # its own words name the file and the reason
    except Exception as error:  # torch.load promises no kind for a broken file
        raise ValueError(
            f'{checkpoint} is not a complete PyTorch checkpoint of plain tensors: '
            f'delete it and download {TORCHVISION_VGG16} again.'
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(
            f'{checkpoint} holds a {type(weights).__name__} instead of named '
            f'weights: download {TORCHVISION_VGG16}'
        )
    return weights


def _download(url: str) -> str:
    """Path of the file behind `url` in the cache of torch.hub."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    if not os.path.isfile(path):
        try:
            os.makedirs(folder, exist_ok=True)
            # Renames a complete file into place, so several ranks may do this.
            torch.hub.download_url_to_file(url, path)
        except OSError as error:
            raise OSError(
                f'{url} could not be downloaded ({error}): fetch it with another '
                f'machine and put it at {path}'
            ) from error
    return path
