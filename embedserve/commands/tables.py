"""Plain aligned tables for terminals and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["size_text", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Columns of equal width, two blanks apart; the last column is as wide as its text."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def size_text(size: float) -> str:
    """Bytes for a reader: `17 B`, `3.2 KB`, `1.5 GB`."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
