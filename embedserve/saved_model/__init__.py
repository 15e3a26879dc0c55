"""SavedModels: completeness and contents of a directory, and runs of its signatures. Only this package runs TensorFlow.

The package's import loads no module; `loader`, `function`, `session` and their neighbours import TensorFlow.
"""
