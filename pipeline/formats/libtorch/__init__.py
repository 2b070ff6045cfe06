"""A C++ program around a TorchScript file; its sources are in servers/libtorch."""
