"""Models in remote stores: synced version by version to a local cache, and told as any source tells."""
