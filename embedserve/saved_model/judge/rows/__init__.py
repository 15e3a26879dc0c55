"""Analysis of row independence in a graph: `walk` follows the graph, `table` holds the rules of operations."""
