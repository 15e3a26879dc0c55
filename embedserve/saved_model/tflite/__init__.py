"""TensorFlow Lite models: the contents of a model's file, and interpreters that run a model."""
