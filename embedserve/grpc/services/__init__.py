"""The RPCs: what each service answers over a registry, from messages to messages."""
