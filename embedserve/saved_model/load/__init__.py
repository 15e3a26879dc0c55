"""From a version directory to a servable that is judged, guarded and warm."""
