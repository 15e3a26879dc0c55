"""Turns a version directory into an analysed, guarded and warm servable."""
