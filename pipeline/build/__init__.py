"""The loop of a build: steps and their store, the gate, what is emitted, and its proof."""
