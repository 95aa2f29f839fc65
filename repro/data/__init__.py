"""Data as Caffe's ImageSegData serves it: lists of items, transforms, batches."""
