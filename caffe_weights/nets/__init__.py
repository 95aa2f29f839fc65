"""Nets in prototxt: the text, its layers and the types that the generations of Caffe give them."""
