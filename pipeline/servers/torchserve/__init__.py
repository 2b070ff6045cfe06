"""TorchServe: its archive, its process, its proof."""
