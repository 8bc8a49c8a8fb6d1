_base_ = ['rfcn_r101_voc0712.py', '_base_/rfcn_ohem.py']

model = _base_.ohem
