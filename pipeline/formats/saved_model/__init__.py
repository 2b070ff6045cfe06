"""TensorFlow and Keras, in a process of their own.

The pipeline's process never imports TensorFlow: it adds 540 MB to the 250 MB of torch and ONNX Runtime and takes 4 to 8
seconds to load (measured with TensorFlow 2.19.1 and torch 2.13.0), its threads, seeds and determinism are set once per
process, and what it writes depends on what the process did before (counters in the names of functions). So a child
imports it, answers through a socket pair (``process`` here, ``child`` there), and dies with its parent.

``process``, ``messages`` and ``names`` import nothing heavy; the other modules are the child's.
"""
