"""Which room imports which, against the order that CONTRIBUTING.md gives."""

import ast
import re

import pytest
from support.tools import ROOT

PACKAGE = ROOT / 'mmdet_ohem'
FILES = [
    path.relative_to(PACKAGE)
    for path in sorted(PACKAGE.rglob('*.py'))
    if '.mim' not in path.parts
]
# These may import every room: what a user imports, and a path of earlier versions.
FRONT = {'__init__', 'seed_hook'}


def order() -> dict[str, int]:
    """Place of each room, and of each module beside the rooms, in the list."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    lines = re.findall(r'^\d+\. ((?:`\w+`(?:, )?)+)', text, re.MULTILINE)
    return {
        name: place
        for place, line in enumerate(lines)
        for name in re.findall(r'`(\w+)`', line)
    }


def room_of(path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imported(path) -> set[str]:
    """The rooms of this package that a file names in an import."""
    names = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} has a relative import'
            names += [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split('.')[1] for name in names if name.startswith('mmdet_ohem.')}


def test_the_order_names_every_room():
    assert set(order()) == {room_of(path) for path in FILES} - FRONT


def test_six_modules_at_most_stand_beside_the_rooms():
    assert len([path for path in FILES if len(path.parts) == 1]) <= 6


@pytest.mark.parametrize('path', FILES, ids=str)
def test_a_room_imports_only_rooms_before_it(path):
    room = room_of(path)
    if room in FRONT:
        return
    places = order()
    later = {
        name
        for name in imported(path)
        if name != room and places[name] >= places[room] > 0
    }
    assert not later, f'{path} imports {later}, see the order in CONTRIBUTING.md'


@pytest.mark.parametrize('path', FILES, ids=str)
def test_rooms_ask_each_other_at_the_door(path):
    """What a room exports stands in its __init__.py; its files are its own affair."""
    room = room_of(path)
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.count('.') > 1:
            package, other, *_ = node.module.split('.')
            assert package != 'mmdet_ohem' or other == room, (
                f'{path} imports from {node.module}, not from the room'
            )


@pytest.mark.parametrize(
    'path', [path for path in FILES if path.name == '__init__.py'], ids=str
)
def test_a_room_says_what_it_holds_and_exports(path):
    tree = ast.parse((PACKAGE / path).read_text())
    assert ast.get_docstring(tree)
    (exported,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == '__all__'
    ]
    assert len(set(exported)) == len(exported)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_library_code_neither_prints_nor_exits(path):
    if str(path) == 'runs/launch.py':
        return  # ends a command line
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Name):
            assert node.id not in ('print', 'SystemExit', 'exit'), (
                f'{path}:{node.lineno}'
            )
        elif isinstance(node, ast.Attribute):
            assert node.attr not in ('exit', '_exit'), f'{path}:{node.lineno}'
