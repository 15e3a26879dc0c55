"""Arrays ⇄ wire values: the dtype table, `TensorProto` and JSON. Knows no model and no loop."""
