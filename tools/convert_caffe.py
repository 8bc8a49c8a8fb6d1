"""Convert weights of VGG16 or VGG_CNN_M_1024 to a checkpoint of this project.

IN is a .caffemodel, ImageNet classifier or Fast R-CNN detector (the released OHEM
models, for instance), or the VGG16 of torchvision or OpenMMLab (.pth). Caffe is not
needed. A detector can be tested with tools/test.py at once; an ImageNet classifier is
what training starts from (init_cfg of the configs).
"""

import argparse

from mmdet_ohem.caffe import convert
from mmdet_ohem.runs import errors_as_sentences

EPILOG = """examples:
  python tools/convert_caffe.py VGG16.v2.caffemodel checkpoints/vgg16_caffe.pth
  python tools/convert_caffe.py vgg16-397923af.pth checkpoints/vgg16_torchvision.pth

The weights' input (mean, std, channel order) is printed, for the config's
data_preprocessor. VGG16's 553 MB take 1.3 GB of memory and 8 seconds on 2 cores.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', metavar='IN', help='.caffemodel or .pth to read')
    parser.add_argument('target', metavar='OUT.pth', help='checkpoint to write')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_as_sentences():
        conversion = convert(args.source, args.target)
    print(conversion.title)
    for word, names in (
        ('taken', conversion.taken),
        ('left', conversion.left),
        ('missing, so random when training starts', conversion.missing),
    ):
        print(f'{word}: {", ".join(names) or "nothing"}')
    print(f'input of these weights: data_preprocessor={conversion.data_preprocessor}')
    print(f'wrote {args.target}')


if __name__ == '__main__':
    main()
