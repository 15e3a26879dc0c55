"""TensorFlow Lite models: the contents of a model's file, and the interpreters for a model."""
