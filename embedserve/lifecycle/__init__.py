"""From directories to serving versions: sources aspire, policies choose, the manager makes it so."""
