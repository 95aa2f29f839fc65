"""How networks learn: Caffe's solver, the losses, training and what it resumes from."""
