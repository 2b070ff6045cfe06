"""A C++ program that serves itself: its source, and its proof."""
