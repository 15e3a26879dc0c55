"""Values that no signature keeps out, for every kernel of TensorFlow that a request can reach."""
