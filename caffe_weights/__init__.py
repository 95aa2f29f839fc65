"""Reading, writing and converting the files that the original Caffe wrote. Imports neither torch nor repro."""

__version__ = "0.1.0"

from caffe_weights.deeplab.export import ExportSettings, model_layers, read_settings, to_caffe
from caffe_weights.files.caffemodel import read_caffemodel, write_caffemodel
from caffe_weights.files.checksum import sha256
from caffe_weights.files.model import Layer, Model, count_nonfinite
from caffe_weights.files.solverstate import (
    SolverState,
    read_binaryproto,
    read_solverstate,
    write_binaryproto,
    write_solverstate,
)
from caffe_weights.nets.network import ConvGeometry, NetLayer, conv_geometry, net_layers
from caffe_weights.nets.prototxt import Message, parse_prototxt, read_prototxt

__all__ = [
    "ConvGeometry",
    "ExportSettings",
    "Layer",
    "Message",
    "Model",
    "NetLayer",
    "SolverState",
    "conv_geometry",
    "count_nonfinite",
    "model_layers",
    "net_layers",
    "parse_prototxt",
    "read_binaryproto",
    "read_caffemodel",
    "read_prototxt",
    "read_settings",
    "read_solverstate",
    "sha256",
    "to_caffe",
    "write_binaryproto",
    "write_caffemodel",
    "write_solverstate",
]
