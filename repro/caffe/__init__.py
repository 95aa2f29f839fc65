"""Caffe's own files, as they stand: a net's prototxt becomes a module over torch tensors, with Caffe's semantics forward and backward."""
