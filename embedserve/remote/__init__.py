"""Models in remote stores: synced version by version to a local cache, and reported like any source's models."""
