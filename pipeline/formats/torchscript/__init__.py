"""TorchScript: traced or scripted from the source model, opened in PyTorch."""
