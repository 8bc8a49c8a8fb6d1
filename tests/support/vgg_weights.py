"""torchvision's VGG16 file in small."""

import torch

# Index in torchvision's `features`, in and out channels, of the 13 convolutions.
CONVS = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256)]
CONVS += [(12, 256, 256), (14, 256, 256), (17, 256, 512)]
CONVS += [(index, 512, 512) for index in (19, 21, 24, 26, 28)]


def vgg16_weights(fc6_inputs=8, fc_width=6):
    """Keys and shapes of torchvision's file, but for smaller classifier layers."""
    generator = torch.Generator().manual_seed(0)

    def layer(*shape):
        weight = torch.randn(shape, generator=generator)
        return dict(weight=weight, bias=torch.randn(shape[0], generator=generator))

    layers = {f'features.{i}': layer(m, n, 3, 3) for i, n, m in CONVS}
    layers['classifier.0'] = layer(fc_width, fc6_inputs)
    layers['classifier.3'] = layer(fc_width, fc_width)
    layers['classifier.6'] = layer(10, fc_width)  # the 1000 classes of ImageNet
    return {
        f'{name}.{kind}': tensor
        for name, tensors in layers.items()
        for kind, tensor in tensors.items()
    }
