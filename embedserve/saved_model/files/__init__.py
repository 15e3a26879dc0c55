"""Reads version directories without TensorFlow: completeness, and the contents of the graph."""
