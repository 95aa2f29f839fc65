"""The networks of DeepLab and of the paper as Caffe runs them: layers, prototxts, solvers, export and initialisation."""
