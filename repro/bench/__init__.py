"""The kernel benchmark: `python -m repro.bench`. Every op at the protocol's shapes against eager PyTorch and torch.compile, after all of them agreed with float64."""
