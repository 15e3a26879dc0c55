"""TensorFlow Lite models: what their file says, and how interpreters run them."""
