"""Make a trained detector ready to hand on: python tools/publish.py CHECKPOINT."""

import argparse
from pathlib import Path

from mmdet_ohem.runs import errors_as_sentences, publish


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write a folder with the weights alone (no optimiser; they load '
        'with weights_only), a hash in the name, the config, the log and a model card. '
        'mmdet_ohem.runs.load_detector takes the folder.'
    )
    parser.add_argument('checkpoint', help='checkpoint file in its work dir')
    parser.add_argument(
        '--out', default='published', help='folder to write to (default: published)'
    )
    parser.add_argument(
        '--name', help="of the detector; the work dir's name if left out"
    )
    args = parser.parse_args()
    name = args.name or Path(args.checkpoint).absolute().parent.name
    with errors_as_sentences():
        folder = publish(args.checkpoint, args.out, name)
    print(f'Wrote {folder}: {", ".join(sorted(p.name for p in folder.iterdir()))}.')


if __name__ == '__main__':
    main()
