"""Import rules between packages, and no SQL formatted from values, checked on the syntax tree."""

import ast
import re
from pathlib import Path

import pytest

from shared.settings import ROOT

PACKAGES = ("worker", "api", "shared")
FILES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
NEVER = {
    "api": {"worker", "celery", "kombu", "tests", "scripts", "bench"},
    "worker": {"api", "flask", "gunicorn", "tests", "scripts", "bench"},
    "shared": {"api", "worker", "flask", "celery", "kombu", "boto3", "gunicorn", "tests", "scripts", "bench"},
}
# The layers of each package, from the top down: a module imports only lower layers. Modules separated by commas may
# import each other without a circle; modules separated by "|" never import each other.
LAYERS = {
    "worker": "producer, publishing > tasks > ingest, estimate > leases > source | indexing | parsing > app",
    "api": "serve > app > routes > bodies, access, problems > ask > answering > "
    "verification | retrieval > resources > question_log",
    "shared": "cli > evaluation > system, client > providers | ledger > cache, keys > "
    "settings, db, broker, background > prices, text, models, file_types, errors, log",
}
ONLY_INSIDE_SHARED = ("shared.cli", "shared.evaluation", "shared.system")
# Packages that open connections to providers, and the modules that may import them.
CLIENTS = {
    "anthropic": ("shared.providers",),
    "openai": ("shared.providers",),
    "httpx2": ("shared.providers", "shared.client", "shared.system.up"),
}
# The parsing child runs without keys: all its direct and indirect imports are in CHILD_MAY.
CHILD = "worker.parsing.child"
CHILD_MAY = ("worker.parsing", "shared.errors", "shared.models", "shared.file_types")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(tree: ast.AST, modules: dict[str, Path] = MODULES) -> set[str]:
    """Return the dotted names of all imports of a module, including those in functions and for type checks."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            module = node.module or ""
            found |= {full if (full := f"{module}.{alias.name}") in modules else module for alias in node.names}
    return found


IMPORTS = {module: imports(ast.parse(path.read_text())) for module, path in MODULES.items()}


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def allowed(layers: str, layer: str) -> set[str]:
    """Return the layers that a layer may import, without itself."""
    lines = [[part.strip() for part in line.replace("|", ",").split(",")] for line in layers.split(">")]
    texts = layers.split(">")
    (rank,) = [number for number, line in enumerate(lines) if layer in line]
    below = {name for line in lines[rank + 1 :] for name in line}
    return below if "|" in texts[rank] else below | set(lines[rank]) - {layer}


def broken_rules(module: str, imported: set[str]) -> list[str]:
    """Return a sentence about each forbidden import of one module."""
    package, _, rest = module.partition(".")
    wrong = [f"{module} imports {name}" for name in imported if name.partition(".")[0] in NEVER[package]]
    if rest:
        layer = rest.partition(".")[0]
        may = allowed(LAYERS[package], layer)
        for name in imported:
            other = name.split(".")
            if other[0] == package and len(other) > 1 and other[1] != layer and other[1] not in may:
                wrong.append(f"{module} imports {name}, which is not below {layer}")
    for name in imported:
        if package != "shared" and is_in(name, ONLY_INSIDE_SHARED):
            wrong.append(f"{module} imports {name}, which only shared/ may")
        if (client := name.partition(".")[0]) in CLIENTS and not is_in(module, CLIENTS[client]):
            wrong.append(f"{module} imports {name}")
    return sorted(wrong)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the circles of imports, each as its modules joined by arrows."""
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" → ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for name in sorted(graph.get(module, set()) & graph.keys()):
                visit(name, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return all our modules that `start` imports directly or indirectly."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in graph and module not in seen:
            seen.add(module)
            waiting.extend(graph[module])
    return seen


# Functions that run SQL, and the position of the SQL in their arguments.
SQL_ARGUMENT = {"execute": 0, "executemany": 0, "copy": 0, "SQL": 0, "value": 1, "rows": 2}
STATEMENT = re.compile(r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|CREATE|ALTER|DROP)\s+\S")


def built_sql(tree: ast.Module) -> list[int]:
    """Return the lines of formatted SQL: in calls that run SQL, and in any f-string that begins like a statement."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and isinstance(first := node.values[0] if node.values else None, ast.Constant)
        and STATEMENT.match(str(first.value))
    ]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        position = SQL_ARGUMENT.get(node.func.attr, len(node.args))
        for argument in node.args[position : position + 1]:
            for part in ast.walk(argument):
                percent = isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod)
                formatted = (
                    isinstance(part, ast.Call)
                    and isinstance(part.func, ast.Attribute)
                    and part.func.attr == "format"
                    and isinstance(part.func.value, ast.Constant)
                )
                if percent or formatted or isinstance(part, ast.JoinedStr):
                    lines.append(part.lineno)  # type: ignore[attr-defined]
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers_and_sql_is_not_formatted(module: str) -> None:
    assert broken_rules(module, IMPORTS[module]) == []
    assert built_sql(ast.parse(MODULES[module].read_text())) == []


def test_imports_have_no_circle() -> None:
    assert circles(IMPORTS) == []


def test_the_parsing_child_imports_no_module_with_keys() -> None:
    parsers = {name for name in IMPORTS if is_in(name, ("worker.parsing",))} - {"worker.parsing.parser"}
    modules = set().union(*(reached(IMPORTS, name) for name in parsers | {CHILD}))  # the child imports parsers by name
    assert [name for name in sorted(modules) if not is_in(name, CHILD_MAY)] == []


def test_the_checks_detect_violations() -> None:
    tree = ast.parse("from worker.app import app\nimport api.ask\ndef f():\n    import celery.app\n")
    assert imports(tree) == {"worker.app", "api.ask", "celery.app"}
    assert imports(ast.parse("from shared import db")) == {"shared.db"}
    for module, name in [
        ("api.ask", "worker.app"),
        ("api.ask", "api.routes.ask"),
        ("api.verification.citations", "api.retrieval.passages"),
        ("api.ask", "shared.system.up"),
        ("shared.ledger.claims", "shared.providers.meter"),
        ("shared.models", "shared.settings"),
        ("worker.source.scan", "worker.indexing.index"),
        ("worker.ingest", "anthropic"),
    ]:
        assert len(broken_rules(module, {name})) == 1, (module, name)
    for module, name in [
        ("api.ask", "api.answering.draft"),
        ("shared.cli.commands", "shared.system.up"),
        ("worker.source.scan", "worker.source.guard"),
        ("worker.producer", "worker.publishing"),
    ]:
        assert not broken_rules(module, {name}), (module, name)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b → c → b"]
    assert reached({"a": {"b", "x"}, "b": {"c"}, "c": set(), "d": set()}, "a") == {"a", "b", "c"}
    bad = ("f'SELECT {x}'", "'SELECT %s' % x", "'SELECT {}'.format(x)", "A + f'{x}'", "sql.SQL(f'SELECT {x}')")
    for argument in (*bad, "f'{A} WHERE y'"):
        assert built_sql(ast.parse(f"A = 'SELECT 1'\nc.execute({argument})")), argument
    for line in ("A = f'UPDATE t SET {x}'", "db.value(c, f'{x}')", "db.rows(c, Row, A + f'{x}')"):
        assert built_sql(ast.parse(line)), line
    good = ("'SELECT %s', [x]", "A + ' WHERE y'", "sql.SQL('SELECT {}').format(sql.Identifier(x))", "A, [f'{x}']")
    for argument in good:
        assert not built_sql(ast.parse(f"A = 'SELECT 1'\nc.execute({argument})")), argument
    assert not built_sql(ast.parse("say(f'Updated {n} files')\ndb.value(c, 'SELECT 1', [f'{x}'])"))
