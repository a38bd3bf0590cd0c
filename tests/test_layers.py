"""Who may import whom, and that no SQL is put together from values: from the syntax tree."""

import ast
from pathlib import Path

import pytest

from shared.settings import ROOT

FILES = sorted(path for folder in ("api", "shared", "worker") for path in (ROOT / folder).rglob("*.py"))
NEVER = {
    "api": {"worker", "celery", "kombu", "tests", "scripts"},
    "worker": {"api", "flask", "gunicorn", "tests", "scripts"},
    "shared": {"api", "worker", "flask", "celery", "kombu", "boto3", "gunicorn", "tests", "scripts"},
}


def imports(tree: ast.AST) -> set[str]:
    """Top-level names of everything that a module imports, functions and type checks included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            found.add((node.module or "").partition(".")[0])
    return found


def constants(tree: ast.Module) -> set[str]:
    """Names that the module gives a literal string once, at its top."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def built_sql(tree: ast.Module) -> list[int]:
    """Lines of SQL handed to execute() and the like that is formatted from more than the module's constants."""
    fixed, lines = constants(tree), []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr not in ("execute", "executemany", "copy", "SQL"):
            continue
        for part in ast.walk(node.args[0]):
            inserted = (
                [v.value for v in part.values if isinstance(v, ast.FormattedValue)]
                if isinstance(part, ast.JoinedStr)
                else []
            )
            percent = isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod)
            formatted = (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr == "format"
                and isinstance(part.func.value, ast.Constant)
            )
            if percent or formatted or any(not (isinstance(v, ast.Name) and v.id in fixed) for v in inserted):
                lines.append(part.lineno)  # type: ignore[attr-defined]
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    folder = path.relative_to(ROOT).parts[0]
    assert sorted(imports(tree) & NEVER[folder]) == []
    assert built_sql(tree) == []


def test_the_check_sees_what_it_forbids() -> None:
    tree = ast.parse("from worker.app import app\nimport api.ask\ndef f():\n    import celery.app\n")
    assert imports(tree) == {"worker", "api", "celery"}
    bad = ("f'SELECT {x}'", "'SELECT %s' % x", "'SELECT {}'.format(x)", "A + f'{x}'", "sql.SQL(f'SELECT {x}')")
    for argument in bad:
        assert built_sql(ast.parse(f"A = 'SELECT 1'\nc.execute({argument})")), argument
    good = ("'SELECT %s', [x]", "f'{A} WHERE y'", "A + ' WHERE y'", "sql.SQL('SELECT {}').format(sql.Identifier(x))")
    for argument in good:
        assert not built_sql(ast.parse(f"A = 'SELECT 1'\nc.execute({argument})")), argument
