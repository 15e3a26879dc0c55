"""SavedModels: completeness and contents of a directory, and runs of signatures. Only `saved_model` runs TensorFlow.

The package's import loads no module; `loader`, `function`, `session` and neighbouring modules import TensorFlow.
"""
