"""The RPCs: the answers of each service over a registry, from messages to messages."""
