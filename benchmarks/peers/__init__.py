"""Server programs that the suite measures embedserve against, and what each needs installed.

Each runs as a script in an environment of its own and imports nothing from here but `signature`, so that a reader
sees what its users would write.
"""
