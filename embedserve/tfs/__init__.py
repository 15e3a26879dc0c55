"""TensorFlow Serving's formats: configuration and batching files, messages, and the tf.Example calls."""
