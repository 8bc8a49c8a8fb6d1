"""Weights from Caffe's files, read without Caffe."""

from mmdet_ohem.caffe.convert import Conversion, convert

__all__ = ['Conversion', 'convert']
