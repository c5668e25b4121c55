"""What the code of a module means, as a digest: it changes with a formula and not with a comment.

DVC sees files, not Python's imports, so a stage depends on the digest of all that it imports (stage check writes them), and
a checkpoint is identified by the digest of all that its training imports.
"""

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
EVERY_METHOD = "simsiam.methods.every"  # which imports all methods, of which a training uses one
# Code that decides no number: figures; settings, which results are known by besides; what only reads, writes and tells.
NO_NUMBERS = frozenset(
    f"simsiam.{name}" for name in ("plots", "settings", "files", "errors", "machine", "code", "checkpoint")
)


def imports(path: Path) -> set[Path]:
    """The files of this repository that a Python file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    places = [ROOT.joinpath(*name.split(".")) for name in names]
    return {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}


def closure(path: Path, unopened: frozenset[Path] = frozenset()) -> set[Path]:
    """A file, the files that it imports, those that they import, and so on; not what `unopened` ones import."""
    found, new = {path}, imports(path)
    while new := new - found:
        found, new = found | new, set().union(*map(imports, new - unopened))
    return found


def digest(module: str, without: frozenset[str] = frozenset(), *, method: str | None = None) -> str:
    """16 hexadecimal digits of the meaning of `module` and of all of this repository that it imports, but `without`.

    method: where all methods of pretraining are among that, of these this one alone counts: another one that is added or
    mended makes no difference. Nor do comments, docstrings, layout and the version of Python.
    """
    paths, every = closure(_file(module)), _file(EVERY_METHOD)
    if method is not None and every in paths:
        own = _file(f"simsiam.methods.{method}")
        paths = closure(_file(module), frozenset({every})) - {every} | (closure(own) if own.is_file() else set())
    files = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}
    content = repr([(name, _tree(ast.parse(files[name].read_bytes()))) for name in sorted(files) if name not in without])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _tree(node: object) -> object:
    """The syntax tree as nested tuples, without positions, docstrings and the fields that Python versions differ in."""
    if isinstance(node, list):
        return tuple(_tree(each) for each in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if ast.get_docstring(node, clean=False) is not None:
            fields["body"] = fields["body"][1:]
    if isinstance(node, ast.JoinedStr):  # Python 3.12.1 has an empty text behind a width that is computed
        fields["values"] = [value for value in node.values if getattr(value, "value", None) != ""]
    kept = {name: value for name, value in fields.items() if name not in ("ctx", "kind", "type_comment")}
    return (type(node).__name__, *((name, _tree(value)) for name, value in kept.items() if value not in (None, [])))
