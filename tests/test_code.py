"""A digest changes with what the code does, wherever the closure reaches, and with nothing else."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simsiam import code
from simsiam.methods.every import METHODS

ROOT = Path(__file__).parent.parent
INTERPRETERS = [Path.home() / f".pyenv/versions/{version}/bin/python" for version in ("3.11.7", "3.12.1", "3.13.0")]

MAIN = '''"""What it does."""

import math

from room.helper import helped  # a comment
from room import constants


class Layer:
    """A class."""

    def scale(self, x: float, factor: float = 2.0) -> float:
        """A method."""
        return factor * x + constants.ONE


def result(x: float) -> float:
    """A function."""
    text = f"{x:.3f} {x!r}"
    total = sum(helped(value) for value in (x, *[1.0]) if value > 0)
    match text:
        case "": total -= 1
        case _: pass
    return math.sqrt(total)
'''
HELPER = '''def helped(x: float) -> float:
    """Help."""
    from room import late
    return x ** 2 + late.MORE
'''


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository: main imports helper and constants, helper imports late, and nobody imports idle."""
    folder = tmp_path / "room"
    folder.mkdir()
    texts = {"main": MAIN, "helper": HELPER, "constants": "ONE = 1\n", "late": "MORE = 2\n", "idle": "X = 1\n"}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


SAME = [
    ("main", "  # a comment", ""),
    ("main", "# a comment", "# another"),
    ("main", '"""What it does."""', '"""What else it does."""'),
    ("main", '"""What it does."""\n\n', ""),
    ("main", '    """A class."""\n\n', ""),
    ("main", '        """A method."""\n', "        # A method.\n"),
    ("main", '"""A function."""', '"""A function,\n\n    at length.\n    """'),
    ("helper", '    """Help."""\n', ""),
    ("main", "import math\n", "import math\n\n\n\n"),
    ("main", "factor * x + constants.ONE", "(\n            factor * x\n            + constants.ONE\n        )"),
    ("main", '    text = f"{x:.3f} {x!r}"', "    text = f'{x:.3f} {x!r}'"),
    ("idle", "X = 1", "X = 2"),
]

OTHER = [
    ("main", "factor * x + constants.ONE", "factor * x - constants.ONE"),
    ("main", "factor * x + constants.ONE", "x * factor + constants.ONE"),
    ("main", "factor: float = 2.0", "factor: float = 3.0"),
    ("main", "factor: float = 2.0", "factor: float"),
    ("main", "x: float, factor: float = 2.0", "x: float, *, factor: float = 2.0"),
    ("main", "if value > 0", "if value >= 0"),
    ("main", "{x:.3f}", "{x:.4f}"),
    ("main", "{x!r}", "{x!s}"),
    ("main", 'case "":', 'case "x":'),
    ("main", "(x, *[1.0])", "(x, 1.0)"),
    ("main", "total -= 1", "total += 1"),
    ("main", "(x, *[1.0])", "(x, *[1])"),
    ("main", "class Layer:", "class Layer(Exception):"),
    ("main", "from room.helper import helped", "from room.idle import helped"),
    ("main", "    def scale", "    @staticmethod\n    def scale"),
    ("helper", "x ** 2", "x ** 3"),
    ("constants", "ONE = 1", "ONE = 2"),
    ("constants", "ONE = 1", "ONE = True"),
    ("constants", "ONE = 1", 'ONE = "1"'),
    ("late", "MORE = 2", "MORE = 3"),
]


@pytest.mark.parametrize(("name", "old", "new"), SAME)
def test_what_does_nothing_changes_nothing(room: Path, name: str, old: str, new: str) -> None:
    before = code.digest("room.main")
    edit(room / f"{name}.py", old, new)
    assert code.digest("room.main") == before


@pytest.mark.parametrize(("name", "old", "new"), OTHER)
def test_what_does_something_else_changes_it(room: Path, name: str, old: str, new: str) -> None:
    before = code.digest("room.main")
    edit(room / f"{name}.py", old, new)
    assert code.digest("room.main") != before


def test_a_text_that_is_no_docstring_counts(room: Path) -> None:
    before = code.digest("room.constants")
    (room / "constants.py").write_text('ONE = 1\n"""Not a docstring."""\n')
    assert code.digest("room.constants") != before


def test_what_is_left_out_changes_nothing(room: Path) -> None:
    before, whole = code.digest("room.main", frozenset({"room.late"})), code.digest("room.main")
    assert before != whole
    edit(room / "late.py", "MORE = 2", "MORE = 3")
    assert code.digest("room.main", frozenset({"room.late"})) == before
    edit(room / "helper.py", "x ** 2", "x ** 3")
    assert code.digest("room.main", frozenset({"room.late"})) != before


def test_a_module_that_moves_is_another(room: Path) -> None:
    before = code.digest("room.main")
    (room / "late.py").rename(room / "later.py")
    edit(room / "helper.py", "import late\n    return x ** 2 + late.", "import later\n    return x ** 2 + later.")
    assert code.digest("room.main") != before


def test_modules_that_import_each_other_come_to_an_end(room: Path) -> None:
    (room / "late.py").write_text("import room.main\nMORE = 2\n")
    names = {path.stem for path in code.closure(room / "main.py")}
    assert names == {"main", "helper", "constants", "late", "__init__"}


def test_a_package_is_its_init(room: Path) -> None:
    (room / "inner").mkdir()
    (room / "inner/__init__.py").write_text("from room.constants import ONE\n")
    (room / "late.py").write_text("from room.inner import ONE as MORE\n")
    before = code.digest("room.main")
    (room / "inner/__init__.py").write_text("from room.idle import X as ONE\n")
    assert code.digest("room.main") != before


@pytest.mark.parametrize("module", ["ablation.point", "stages.report"])
def test_the_closure_is_what_python_imports(module: str) -> None:
    """Of this repository, against the interpreter's own list after the import."""
    files = "[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]"
    script = f"import json, sys, {module}; print(json.dumps({files}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rooms = [ROOT / name for name in ("simsiam", "stages", "ablation")]
    loaded = {Path(file) for file in json.loads(result.stdout) if any(room in Path(file).parents for room in rooms)}
    found = code.closure(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
    waiting = {ROOT / "stages/__init__.py", ROOT / "ablation/__init__.py"}  # how threads wait changes no number
    assert found and {path for path in loaded - waiting if len(ast.parse(path.read_text()).body) > 1} <= found


def in_python(python: Path, modules: list[str], root: Path = ROOT) -> list[str]:
    """The digests that another interpreter, with nothing but its standard library, finds."""
    if not python.exists():
        pytest.skip(f"there is no {python}")
    script = f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r}); from simsiam import code; "
    script += f"code.ROOT = pathlib.Path({str(root)!r}); print(*map(code.digest, {modules}))"
    result = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_all_versions_of_python_agree(python: Path) -> None:
    modules = ["stages.pretrain", "stages.explain", "stages.report", "ablation.point"]
    assert in_python(python, modules) == [code.digest(module) for module in modules]


ODD = """import contextlib
ONE = 1
try:
    pass
except* ValueError:
    pass
async def f(a, /, b=1, *c, d, **e) -> None:
    'Doc.'
    async with a as b, c: yield (x := 3)
def only_a_docstring():
    'Doc.'
G = lambda a, b, *c: f"{a=} {a!r:>{b}} {{}}" "joined" f"{a:{b}.{c}}" if a[1:2, *c] else ...
"""


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_all_versions_of_python_agree_on_odd_syntax(room: Path, python: Path) -> None:
    """Where their trees differ, such as for f-strings."""
    (room / "constants.py").write_text(ODD)
    assert in_python(python, ["room.main"], room.parent) == [code.digest("room.main")]


def test_of_the_methods_only_the_one_that_is_used_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether another is added or mended; what all share, and what the one is made of, counts."""
    for package in ("simsiam", "stages", "ablation"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    methods = tmp_path / "simsiam/methods"

    def digests() -> dict[str, list[str]]:
        modules = ("stages.pretrain", "ablation.trial")
        return {name: [code.digest(module, method=name) for module in modules] for name in ("simclr", "fastsiam")}

    first = digests()
    edit(methods / "vicreg.py", "class VICReg(Method):", "class VICReg(Method):\n    title_ = 3")
    edit(methods / "every.py", '"vicreg": VICReg,', '"vicreg": VICReg,\n    "other": VICReg,')
    assert digests() == first
    assert code.digest("stages.pretrain") != code.digest("stages.pretrain", method="simclr")
    edit(methods / "simsiam.py", "SMALLEST_BOTTLENECK = 32", "SMALLEST_BOTTLENECK = 33")  # which FastSiam's predictor has
    second = digests()
    assert second["simclr"] == first["simclr"] and not set(second["fastsiam"]) & set(first["fastsiam"])
    edit(methods / "simclr.py", "n = len(latents[0])", "n = len(latents[1])")
    third = digests()
    assert third["fastsiam"] == second["fastsiam"] and not set(third["simclr"]) & set(second["simclr"])
    edit(methods / "__init__.py", "len(images.classes) or 1", "len(images.classes) or 2")
    fourth = digests()
    assert not any(set(fourth[name]) & set(third[name]) for name in fourth)
    before = code.digest("stages.linear_eval", method="simclr")
    assert before == code.digest("stages.linear_eval", method="fastsiam") == code.digest("stages.linear_eval")


def test_a_method_has_the_name_of_its_file() -> None:
    assert {name: method.__module__ for name, method in METHODS.items()} == {n: f"simsiam.methods.{n}" for n in METHODS}
