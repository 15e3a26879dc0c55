"""`python -m embedserve inspect`, `status`, `top`, `predict` and `completion`: what a model is, and what a server does.

The commands that take a URL use a server's own endpoints only, and import no TensorFlow.
"""
