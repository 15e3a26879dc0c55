"""How large the package is and how it hangs together, and how its prose reads.

python -m benchmarks.structure [--checkout DIRECTORY]

Prints a Markdown table. Imports count wherever they stand, in functions and under `TYPE_CHECKING` too. Vague pronouns
are counted in docstrings and pages without code. `import embedserve` is timed in five fresh processes; the median is
printed. `--checkout` measures another checkout of the repository, such as an older one.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

VAGUE = frozenset(
    re.findall(
        r"\w+",
        "it its itself that what whatever which who whom whose whoever one ones such they them their theirs "
        "those these this other others nobody anybody somebody everybody nothing anything something everything",
    )
)
"""Words that stand for a noun which the reader has to find."""

LONG, MANY = 40, 6
"""Lines of a function and parameters of a function above which both count."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

TIMED = """
import sys, time
before = set(sys.modules)
began = time.perf_counter()
import embedserve
print(time.perf_counter() - began, len([name for name in set(sys.modules) - before if name.startswith("embedserve")]))
"""

Graph = Mapping[str, frozenset[str]]


def module_names(package: Path) -> dict[str, Path]:
    """Dotted name of each module → its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(trees: Mapping[str, ast.Module]) -> Graph:
    """Each module → the modules of the package that it imports anywhere."""
    graph = {}
    for module, tree in trees.items():
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in trees else node.module)
        graph[module] = frozenset(found & set(trees)) - {module}
    return graph


def cycles(graph: Graph) -> list[frozenset[str]]:
    """Sets of more than one module that all reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for module in graph[todo.pop()]:
                if module not in seen:
                    seen.add(module)
                    todo.append(module)
        reach[start] = seen
    groups = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in graph}
    return sorted((group for group in groups if len(group) > 1), key=sorted)


def levels(graph: Graph) -> int:
    """The longest chain of imports, in modules; a cycle counts as one."""
    ring = {module: group for group in cycles(graph) for module in group}
    depth: dict[str, int] = {}

    def of(module: str) -> int:
        if module not in depth:
            group = ring.get(module, frozenset({module}))
            depth.update(dict.fromkeys(group, 0))
            below = {other for each in group for other in graph[each]} - group
            depth.update(dict.fromkeys(group, 1 + max((of(other) for other in below), default=0)))
        return depth[module]

    return max(of(module) for module in graph)


def single_importers(graph: Graph) -> int:
    """Modules that exactly one other module imports."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph.items():
        for each in imported:
            importers[each].add(module)
    return sum(len(found) == 1 for found in importers.values())


def functions(trees: Mapping[str, ast.Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for tree in trees.values():
        yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters without `self`."""
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def vague(texts: Sequence[str]) -> str:
    """Vague pronouns per 100 words, and the words."""
    words = []
    for text in texts:
        prose = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", " X ", text, flags=re.DOTALL | re.MULTILINE)
        words += re.findall(r"[A-Za-z']+", prose)
    return f"{100 * sum(word.lower() in VAGUE for word in words) / max(len(words), 1):.1f} of {len(words):,} words"


def docstrings(trees: Mapping[str, ast.Module]) -> list[str]:
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    nodes = (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, documented))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def timed_import(checkout: Path) -> str:
    """Milliseconds of `import embedserve` in a fresh process, and how many of its modules that loads."""
    found = []
    for _ in range(5):
        command = [sys.executable, "-c", TIMED]
        printed = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout
        found.append((float(printed.split()[0]), int(printed.split()[1])))
    return f"{1000 * statistics.median(seconds for seconds, _ in found):.0f} ms, {found[0][1]} modules"


def measure(checkout: Path) -> dict[str, object]:
    """Each figure under its title."""
    paths = module_names(checkout / "embedserve")
    trees = {name: ast.parse(path.read_text()) for name, path in paths.items()}
    graph = import_graph(trees)
    pages = [*checkout.glob("*.md"), *(checkout / "docs").rglob("*.md")]
    names = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {
        "modules": len(paths),
        "modules in the root": sum(path.parent == checkout / "embedserve" for path in paths.values()),
        "modules that one other imports": single_importers(graph),
        "import cycles": len(cycles(graph)),
        "levels of imports": levels(graph),
        "lines": sum(len(path.read_text().splitlines()) for path in paths.values()),
        f"functions over {LONG} lines": sum(length(node) > LONG for node in functions(trees)),
        f"functions over {MANY} parameters": sum(parameters(node) > MANY for node in functions(trees)),
        "uses of `Any`": sum(node.id == "Any" for node in names),
        "vague pronouns per 100 words of docstrings": vague(docstrings(trees)),
        "vague pronouns per 100 words of pages": vague([page.read_text() for page in pages]),
        "`import embedserve`": timed_import(checkout),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    print("| figure | value |\n| --- | --- |")
    for title, value in measure(options.checkout.resolve()).items():
        print(f"| {title} | {value} |")


if __name__ == "__main__":
    main()
