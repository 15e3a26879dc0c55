"""SavedModels: is a directory whole, what is in it, and how its signatures run. The only package that runs TensorFlow.

Importing it imports nothing; `loader`, `function`, `session` and their neighbours import TensorFlow.
"""
