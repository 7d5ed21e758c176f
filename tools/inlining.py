"""Source of definitions, and the imports they need, found by parsing and without running code."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FUTURE = "from __future__ import annotations"


class WeaveError(Exception):
    """A script that cannot be woven; the message says what is wrong and what to do."""


class Import(NamedTuple):
    """One name bound by an import statement."""

    module: str
    name: str | None  # None for a plain `import module`
    alias: str | None

    @property
    def bound(self) -> str:
        return self.alias or self.name or self.module.split(".")[0]

    @property
    def target(self) -> str:
        """What the bound name means, whichever way it was imported."""
        if self.name:
            return f"{self.module}.{self.name}"
        return self.module if self.alias else self.bound

    def __str__(self) -> str:
        alias = f" as {self.alias}" if self.alias else ""
        if self.name:
            return f"from {self.module} import {self.name}{alias}"
        return f"import {self.module}{alias}"


def imports_of(code: str, package: str = "") -> list[Import]:
    """Imports at the top level of `code`, inside `if` and `try` too; relative ones resolved."""
    found = []
    for node in _top_level(ast.parse(code).body):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, alias.asname) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            found += [Import(module, alias.name, alias.asname) for alias in node.names]
    return found


def bindings_of(code: str) -> set[str]:
    """Every name that running `code` at the top level binds, imports included."""
    table = symtable.symtable(code, "cell", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def globals_used(code: str) -> set[str]:
    """Names that the definitions in `code` look up outside of themselves, annotations included."""
    table = symtable.symtable(code, "cell", "exec")
    used = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    tables = table.get_children()
    while tables:
        child = tables.pop()
        used |= {s.get_name() for s in child.get_symbols() if s.is_global()}
        tables += child.get_children()
    return used


@dataclass
class Module:
    """A source file whose definitions can be inlined."""

    name: str  # posttrain.methods.sft
    path: str  # posttrain/methods/sft.py
    code: str
    imports: list[Import] = field(init=False)
    own: set[str] = field(init=False)  # names bound here and not imported
    future: bool = field(init=False)

    def __post_init__(self) -> None:
        self.imports = imports_of(self.code, self.name.rpartition(".")[0])
        self.own = bindings_of(self.code) - {i.bound for i in self.imports} - {"annotations"}
        self.future = FUTURE in self.code.splitlines()

    @classmethod
    def find(cls, name: str, root: Path) -> Module:
        """The module `name` under the repository `root`; WeaveError when there is no such file."""
        path = root / (name.replace(".", "/") + ".py")
        if not path.exists():
            raise WeaveError(f"cannot inline from {name}: there is no {path.relative_to(root)}")
        return cls(name, path.relative_to(root).as_posix(), path.read_text())

    def definition(self, name: str) -> str:
        """Source of the function, class or constant `name`, decorators and comments included."""
        found = [node for node in ast.parse(self.code).body if name in _defines(node)]
        if len(found) != 1:
            reason = "defined more than once" if found else "not defined at the top level"
            raise WeaveError(f"cannot inline {name}: it is {reason} of {self.path}")
        node, lines = found[0], self.code.splitlines()
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
        while first > 0 and lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(lines[first : node.end_lineno])

    def needs(self, source: str) -> list[Import]:
        """Imports that give a copy of `source` elsewhere the module-level names it uses."""
        used = globals_used(source)
        own = [Import(self.name, name, None) for name in sorted(used & self.own)]
        return [i for i in self.imports if i.bound in used] + own


class Names:
    """What each name means in the notebook so far, and what inlined code relies on."""

    def __init__(self) -> None:
        self.meaning: dict[str, str] = {}
        self.statements: set[str] = set()
        self.relied: dict[str, str] = {}
        self.inlined: set[str] = set()
        self.future = False

    def add_cell(self, code: str) -> None:
        """Follow an ordinary cell; WeaveError when it rebinds what inlined code relies on."""
        imports = {i.bound: i for i in imports_of(code)}
        for name in sorted(bindings_of(code)):
            target = imports[name].target if name in imports else "a name of the notebook's own"
            if name in self.inlined or self.relied.get(name, target) != target:
                raise WeaveError(
                    f"rebinds {name}, which is {self.relied[name]} in the inlined code "
                    "above it; use another name"
                )
            self.meaning[name] = target
        self.statements |= {str(i) for i in imports.values()}
        self.future |= FUTURE in code.splitlines()

    def require(self, needed: Import) -> bool:
        """Whether an import line has to be added; WeaveError when the name means another thing."""
        name, target = needed.bound, needed.target
        if self.meaning.get(name, target) != target:
            raise WeaveError(
                f"inlined code needs {name} to be {target}, but in the notebook it is "
                f"{self.meaning[name]}; rename one of them, or import it the same way"
            )
        submodule = needed.name is None and needed.alias is None and "." in needed.module
        missing = str(needed) not in self.statements if submodule else name not in self.meaning
        self.meaning[name] = self.relied[name] = target
        self.statements.add(str(needed))
        return missing


def inline(code: str, root: Path, names: Names) -> list[str]:
    """Cells for an inline cell: one per imported definition, the first with the needed imports."""
    asked = [(Module.find(i.module, root), i) for i in _only_imports(code)]
    sources = [module.definition(i.name or "") for module, i in asked]
    for _, definition in asked:
        names.require(definition)
        names.inlined.add(definition.bound)
    added: dict[Import, None] = {}
    for (module, _), source in zip(asked, sources, strict=True):
        for needed in module.needs(source):
            if names.require(needed):
                added[needed] = None
    header = _import_lines(list(added))
    if any(module.future for module, _ in asked) and not names.future:
        header, names.future = [FUTURE, "", *header] if header else [FUTURE], True
    cells: list[str] = []
    for (module, _), source in zip(asked, sources, strict=True):
        top = [f"# {module.path}", *(header if not cells else [])]
        gap = ["", ""] if len(top) > 1 else []
        cells.append("\n".join([*top, *gap, source]))
    return cells


def _only_imports(code: str) -> list[Import]:
    for node in ast.parse(code).body:
        plain = isinstance(node, ast.ImportFrom) and node.level == 0
        if not plain or any(a.asname or a.name == "*" for a in getattr(node, "names", [])):
            raise WeaveError(
                f"a cell tagged inline holds only `from posttrain.x import name, name`, "
                f"without `as` or `*`; found: {ast.unparse(node).splitlines()[0]}"
            )
    return imports_of(code)


def _import_lines(needed: list[Import]) -> list[str]:
    """`import x` lines first, then one `from x import a, b` per module, each sorted."""
    plain = sorted({str(i) for i in needed if i.name is None})
    lines = []
    for module in sorted({i.module for i in needed if i.name}):
        parts = {str(i).partition(" import ")[2] for i in needed if i.name and i.module == module}
        lines.append(f"from {module} import {', '.join(sorted(parts))}")
    return plain + lines


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
