"""For torch.hub: `model = torch.hub.load(CHECKOUT, "attention_to_scale", "x.caffemodel", source="local")`."""

dependencies = ["torch", "numpy", "PIL", "h5py", "tqdm"]


def attention_to_scale(source, row=None, device="auto", precision="fp32"):
    """Loads a trained network; see repro.load."""
    import repro

    return repro.load(source, row, device, precision)
