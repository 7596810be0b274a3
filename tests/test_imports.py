"""The arrows of the architecture, read from the sources."""

import ast
import sys
from pathlib import Path

import pytest
from helpers import ROOT, python

PACKAGES = ("brainslices", "vqvae", "pixelcnn", "tuning")
MAY_IMPORT = {
    "brainslices": {"brainslices"},
    "vqvae": {"vqvae", "brainslices"},
    "pixelcnn": {"pixelcnn", "brainslices"},
    "tuning": {"tuning", "vqvae", "pixelcnn", "brainslices"},
    "scripts": {"tuning", "vqvae", "pixelcnn", "brainslices"},
}
# Inside brainslices: what each part may import beside itself; "" are the modules at its top.
INNER = {
    "": set(),
    "runs": {""},
    "distributed": {""},
    "data": {"", "runs"},
    "evaluation": {"", "runs", "data"},
    "visualization": {"", "runs", "data"},
    "training": {"", "runs", "distributed", "data", "evaluation", "visualization"},
}
# Only inside functions: the JAX backend runs without TensorFlow, and a command's --help is quick.
NEVER_AT_TOP = {"tensorflow", "tensorflow_probability", "jax", "tensorboard"}
SOURCES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def imported(nodes):
    """Full names of the modules that import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def at_top(tree):
    """Statements that run as the module is imported: all but the bodies of functions."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def name(path):
    return str(path.relative_to(ROOT))


def test_there_are_sources():
    assert len(SOURCES) > 15
    assert {path.parts[len(ROOT.parts)] for path in SOURCES} >= {
        "brainslices",
        "vqvae",
        "pixelcnn",
        "scripts",
    }


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    names = list(imported(ast.walk(ast.parse(path.read_text()))))
    assert not [each for each in names if each.startswith(".")], "relative imports hide the arrows"
    ours = {each.split(".")[0] for each in names} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[room]


def part(parts):
    """The part of brainslices that a module's path or dotted name lies in."""
    return parts[1] if len(parts) > 1 and parts[1] in INNER else ""


@pytest.mark.parametrize("path", sorted((ROOT / "brainslices").rglob("*.py")), ids=name)
def test_imports_inside_brainslices_point_one_way(path):
    own = part(path.relative_to(ROOT).parts)
    names = [each.split(".") for each in imported(ast.walk(ast.parse(path.read_text())))]
    found = {part(each) for each in names if each[0] == "brainslices"}
    assert found - {own} <= INNER[own]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_backends_are_imported_where_work_starts(path):
    tops = {each.split(".")[0] for each in imported(at_top(ast.parse(path.read_text())))}
    if path.name == "distribution.py":  # the distribution is TensorFlow Probability's
        tops -= {"tensorflow", "tensorflow_probability"}
    assert not tops & NEVER_AT_TOP


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_modules_say_what_they_offer(path):
    if path.parent.name == "scripts":
        return
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says in a line what it holds"
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for each in node.targets
        for target in ast.walk(each)
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_help_imports_nothing_heavy(path):
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'matplotlib', 'scipy', 'skimage', 'nibabel'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = [{str(path)!r}, '--help']\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    ran = python("-c", code)
    assert ran.returncode == 0, ran.stderr
    assert "usage" in ran.stdout.lower()
    assert "HEAVY []" in ran.stdout


@pytest.mark.parametrize("package", [p for p in PACKAGES if (ROOT / p / "__init__.py").exists()])
def test_importing_a_package_is_light_and_gives_its_names(package):
    code = f"import sys, {package}; print('keras' in sys.modules, {package}.__all__)"
    ran = python("-c", code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("False [")


def test_names_of_the_packages_exist():
    import brainslices
    import pixelcnn
    import vqvae

    for package in (brainslices, vqvae, pixelcnn):
        for each in package.__all__:
            assert each.isupper() or getattr(package, each).__name__ == each
    assert Path(sys.modules["vqvae.model"].__file__).parent == ROOT / "vqvae"


@pytest.mark.parametrize(
    "module", ["benchmarks.harness", "tuning.config", "vqvae.config", "pixelcnn.config"]
)
def test_what_is_handed_to_other_processes_brings_no_backend(module):
    """It is read there before anything can keep the backend's notes off the terminal."""
    ran = python("-c", f"import sys, {module}; print('keras' in sys.modules)")
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr
