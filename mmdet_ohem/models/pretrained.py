"""Pretrained weights for the backbones and their head, for `init_cfg`."""

import io
import os
import re
import zipfile
from urllib.parse import urlparse

import torch
from mmengine.model import update_init_info
from torch import Tensor, nn

from mmdet_ohem.models.vgg import VGGBBoxHead
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
        _copy(
            _read(self.checkpoint, f'download {TORCHVISION_VGG16}'),
            targets,
            module,
            f'TorchvisionVGG16 from {self.checkpoint}',
        )


@WEIGHT_INITIALIZERS.register_module()
class ConvertedWeights:
    """Copies a file of tools/convert_caffe.py into a backbone or a VGGBBoxHead.

    For `init_cfg`: `dict(type='mmdet_ohem.ConvertedWeights', checkpoint=...)`. A head
    takes fc6 and fc7, a backbone everything. MMEngine's 'Pretrained' goes on when
    layers are missing.

    Args:
        checkpoint (str): path of the file, or an https URL.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Fills `module`.

        Raises:
            ValueError: the file is no checkpoint or does not fit the module.
            OSError: the file is missing or cannot be downloaded.
        """
        is_head = isinstance(module, VGGBBoxHead)
        prefix = 'roi_head.bbox_head' if is_head else 'backbone'
        targets = {
            f'{prefix}.{name}': parameter
            for name, parameter in module.named_parameters()
            if not is_head or name.startswith(('fc6.', 'fc7.'))
        }
        advice = (
            'fetch the ImageNet models of Fast R-CNN (data/scripts/'
            'fetch_imagenet_models.sh of github.com/rbgirshick/fast-rcnn) and run '
            'python tools/convert_caffe.py on the one of this network'
        )
        weights = _read(self.checkpoint, advice).get('state_dict')
        _copy(
            weights if isinstance(weights, dict) else {},
            targets,
            module,
            f'ConvertedWeights from {self.checkpoint}',
        )


def read_checkpoint(path: str, advice: str) -> dict:
    """What a checkpoint of tensors and plain Python objects holds.

    Nothing in the file is executed, and no tensor is given memory before all of them
    are known to be in the file. `advice`, what to do about an unfit file, ends the
    error messages.

    Raises:
        ValueError: the file is no such checkpoint.
        OSError: the file cannot be read.
    """
    try:
        # On the device 'meta' tensors have sizes and no memory.
        content = _load(path, 'meta')
        if isinstance(content, dict):
            tensors = content.get('state_dict', content)
            claimed = sum(
                tensor.untyped_storage().nbytes()
                for tensor in tensors.values()
                if isinstance(tensor, Tensor)
            )
            if claimed > os.path.getsize(path):
                raise ValueError(f'{claimed} bytes of tensors are not in the file')
            content = _load(path, 'cpu')
    except OSError:
        raise  # its own words name the file and the reason
    except Exception as error:  # torch.load promises no kind for a broken file
        raise ValueError(
            f'{path} is not a complete PyTorch checkpoint of plain tensors: '
            f'delete it and {advice}.'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} holds a {type(content).__name__} instead of named weights: '
            f'{advice}.'
        )
    return content


def _load(path: str, device: str):
    if zipfile.is_zipfile(path):
        return torch.load(path, map_location=device, weights_only=True)
    # Before PyTorch 1.6, as torchvision's file: PyTorch asks for as many bytes as a
    # damaged one announces, and Python makes room for them.
    with _File(io.FileIO(path)) as file:
        return torch.load(file, map_location=device, weights_only=True)


class _File(io.BufferedReader):
    """A file that is never asked for more than it holds."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _copy(
    weights: dict, targets: dict[str, Tensor], module: nn.Module, source: str
) -> None:
    module_name = type(module).__name__
    for name, parameter in targets.items():
        if not isinstance(weights.get(name), Tensor):
            raise ValueError(
                f"{source} has no weights '{name}', which the init_cfg of "
                f'{module_name} asks for: give the file of this network.'
            )
        if weights[name].shape != parameter.shape:
            raise ValueError(
                f"'{name}' in {source} has the shape {tuple(weights[name].shape)}, "
                f'but {module_name} needs {tuple(parameter.shape)}: use the sizes of '
                'the file or set init_cfg=None.'
            )
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(weights[name])
    if hasattr(module, '_params_init_info'):  # MMEngine's log of who set what
        update_init_info(module, source)


def _read(checkpoint: str, advice: str) -> dict:
    """The content of a path or an https URL; `advice` says where another comes from."""
    scheme = urlparse(checkpoint).scheme
    if scheme == 'https':
        checkpoint = _download(checkpoint)
    elif '://' in checkpoint:
        raise ValueError(
            f'checkpoint {checkpoint} in init_cfg is neither a path nor an https '
            f'URL: give the path of the file, or {advice}.'
        )
    checkpoint = os.path.expanduser(checkpoint)
    if not os.path.isfile(checkpoint):
        raise FileNotFoundError(
            f'{checkpoint}, the checkpoint in init_cfg, does not exist: to have it '
            f'there, {advice}, or set init_cfg=None and frozen_stages=0 to train from '
            'scratch.'
        )
    return read_checkpoint(checkpoint, advice)


def _download(url: str) -> str:
    """Path of the file behind `url` in the cache of torch.hub."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    if not os.path.isfile(path):
        try:
            os.makedirs(folder, exist_ok=True)
            # The file is renamed into place, so several ranks may do this; the
            # beginning of its SHA-256 stands in its name, and a part is refused.
            sha256 = re.search(r'-([a-f0-9]{8,})\.', path)
            torch.hub.download_url_to_file(url, path, sha256 and sha256[1])
        except (OSError, RuntimeError) as error:
            raise OSError(
                f'{url} could not be downloaded ({error}): fetch it with another '
                f'machine and put it at {path}'
            ) from error
    return path
