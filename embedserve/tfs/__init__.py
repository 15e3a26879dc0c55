"""TensorFlow Serving's formats: configuration and batching files, its messages, and the tf.Example calls."""
