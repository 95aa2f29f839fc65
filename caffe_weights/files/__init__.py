"""Caffe's files: weights, solver states and means, in protobuf and in HDF5; read, written, checked and compared."""
