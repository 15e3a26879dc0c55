"""From directories to serving versions: sources aspire, policies choose, and the manager loads and unloads."""
