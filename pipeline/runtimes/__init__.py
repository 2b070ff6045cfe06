"""Open a model and run it in this process: one module per runtime, with a class that satisfies artifacts.Runtime."""
