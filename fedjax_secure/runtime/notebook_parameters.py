"""The parameters of a notebook: what its parameters cell declares, and whether values fit.

papermill passes an unknown parameter on with a warning and checks no types; here both are refused
before a kernel starts. Needs the standard library alone, so that ``make demo`` can refuse a wrong
parameter before it installs anything.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_secure.core.errors import ParameterError

_PLAIN_TYPES = ("bool", "int", "float", "str")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Parameter(NamedTuple):
    """One parameter of a notebook, as its parameters cell declares it.

    Attributes:
        name: the variable's name.
        type_name: ``bool``, ``int``, ``float``, ``str``, ``choice``, or empty if it has no type to
            check a value against.
        default: the source text of the default.
        choices: the allowed values of a ``choice``, else empty.
        optional: whether ``None`` is allowed.
        help: the comment on the parameter's line.
    """

    name: str
    type_name: str
    default: str
    choices: tuple[Any, ...] = ()
    optional: bool = False
    help: str = ""

    @property
    def description(self) -> str:
        """What a value must be, in words."""
        text = {
            "bool": "a truth value (true or false)",
            "int": "an integer",
            "float": "a number",
            "str": "a text",
            "choice": "one of " + ", ".join(str(choice) for choice in self.choices),
        }[self.type_name]
        return f"{text}, or none" if self.optional else text


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Read what parameters a notebook takes, from the cell tagged ``parameters``.

    Each is an assignment of that cell: ``NAME: TYPE = DEFAULT  # help``. The type is that of the
    annotation, or of a ``# type: TYPE`` comment, or else of the default. Types that are checked:
    ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``, and each of them with ``| None``.

    Args:
        notebook: path of a notebook of format 4.

    Returns:
        The parameters by name, in the order of the cell.

    Raises:
        ParameterError: if the file is no notebook, or has no parameters cell, or the cell is not
            Python, or a parameter's type is not one that can be checked.
    """
    path = Path(notebook)
    where = f"notebook {path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [(cell["metadata"].get("tags", ()), cell["source"]) for cell in content["cells"]]
    except FileNotFoundError:
        raise ParameterError(
            where, need="a notebook file", found=f"no file at {path}", fix="Check the path."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(
            where,
            need="a readable notebook of format 4",
            found=f"{type(error).__name__} on reading {path}",
            fix="Open it in JupyterLab and save it, or check the path.",
        ) from None
    sources = [source for tags, source in cells if "parameters" in tags]
    if not sources:
        raise ParameterError(
            where,
            need="a cell with the tag `parameters`",
            found=f"none in {len(cells)} cells",
            fix="Tag the cell that sets its parameters, so that they can be given from outside.",
        )
    return _parse_parameters(where, "".join(sources[0]))


def check_parameters(notebook: str | Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Compare given parameters with those a notebook declares, and cast texts to the right types.

    Args:
        notebook: path of the notebook.
        parameters: values by name; a text is cast to the declared type, as from a command line.

    Returns:
        The values to pass, of the declared types.

    Raises:
        ParameterError: for a name that the notebook does not have (the message has the closest one
            and the list of all), or a value that is not of its type.

    Example:
        >>> import json, tempfile
        >>> cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]},
        ...         "source": "ROUNDS: int = 20  # rounds to run"}
        >>> path = Path(tempfile.mkdtemp()) / "plan.ipynb"
        >>> _ = path.write_text(json.dumps({"cells": [cell]}))
        >>> check_parameters(path, {"ROUNDS": "50"})
        {'ROUNDS': 50}
        >>> check_parameters(path, {"ROUNDZ": "50"})
        Traceback (most recent call last):
        ...
        fedjax_secure.core.errors.ParameterError: notebook plan.ipynb needs parameters that it has
        (ROUNDS), got ROUNDZ. Did you mean ROUNDS?
    """
    declared = read_parameters(notebook)
    where = f"notebook {Path(notebook).name}"
    for name in parameters:
        if name not in declared:
            by_lower = {known.lower(): known for known in declared}
            close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
            raise ParameterError(
                where,
                need=f"parameters that it has ({', '.join(declared) or 'none'})",
                found=name,
                fix=f"Did you mean {by_lower[close[0]]}?" if close else "Use one of those names.",
            )
    return {name: _cast(where, declared[name], value) for name, value in parameters.items()}


def _parse_parameters(where: str, source: str) -> dict[str, Parameter]:
    try:
        statements = ast.parse(source).body
        comments = {
            token.start[0]: token.string.lstrip("# ").rstrip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, tokenize.TokenError) as error:
        raise ParameterError(
            where,
            need="a parameters cell of plain Python assignments",
            found=f"a syntax error in its line {getattr(error, 'lineno', None) or '?'}",
            fix="Write one `NAME: type = default  # help` a line, and no magics.",
        ) from None
    declared = {}
    for statement in statements:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, annotation = statement.target, statement.annotation
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, annotation = statement.targets[0], None
        else:
            continue
        if isinstance(target, ast.Name):
            assert statement.value is not None
            comment = comments.get(statement.end_lineno or statement.lineno, "")
            declared[target.id] = _parameter(
                where, target.id, annotation, ast.unparse(statement.value), comment
            )
    return declared


def _parameter(
    where: str, name: str, annotation: ast.expr | None, default: str, comment: str
) -> Parameter:
    text = comment
    if comment.startswith("type:"):
        declared, _, text = comment.removeprefix("type:").strip().partition("  ")
        if annotation is None:
            try:
                annotation = ast.parse(declared, mode="eval").body
            except SyntaxError:
                annotation = ast.Constant(declared)
    if annotation is None:
        try:
            kind = type(ast.literal_eval(default)).__name__
        except ValueError:
            kind = ""
        return Parameter(name, kind if kind in _PLAIN_TYPES else "", default, help=text)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            annotation = ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            pass
    kinds, choices, optional = [], [], False
    for member in _union(annotation):
        spelled = ast.unparse(member)
        if spelled == "None":
            optional = True
        elif spelled in _PLAIN_TYPES:
            kinds.append(spelled)
        elif isinstance(member, ast.Subscript) and ast.unparse(member.value).endswith("Literal"):
            members = member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]
            try:
                choices += [ast.literal_eval(choice) for choice in members]
            except ValueError:  # a name, whose value only the notebook knows
                kinds.append("")
        else:
            kinds.append("")
    if choices and not kinds:
        kinds = ["choice"]
    if len(kinds) != 1 or kinds == [""] or (choices and kinds != ["choice"]):
        raise ParameterError(
            where,
            need="parameters of type bool, int, float, str or Literal[...], alone or with `| None`",
            found=f"{name}: {ast.unparse(annotation)}",
            fix="Declare it with one of those types.",
        )
    return Parameter(name, kinds[0], default, tuple(choices), optional, text)


def _union(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union(annotation.left) + _union(annotation.right)
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value)
        if outer.endswith("Optional"):
            return [annotation.slice, ast.Constant(None)]
        if outer.endswith("Union") and isinstance(annotation.slice, ast.Tuple):
            return list(annotation.slice.elts)
    return [annotation]


def _cast(where: str, parameter: Parameter, value: Any) -> Any:
    if not parameter.type_name:
        raise ParameterError(
            where,
            need=f"a declared type of {parameter.name} to check its value against",
            found=f"`{parameter.name} = {parameter.default}`",
            fix="Annotate it in the parameters cell.",
        )
    if parameter.optional and (value is None or str(value).lower() == "none"):
        return None
    text = value.strip() if isinstance(value, str) else value
    kind, cast = parameter.type_name, None
    if kind == "choice":
        cast = next((choice for choice in parameter.choices if str(choice) == str(text)), None)
    elif kind == "str":
        cast = value if isinstance(value, str) else None
    elif kind == "bool":
        lowered = str(text).lower()
        cast = True if lowered in _TRUE else False if lowered in _FALSE else None
    elif not isinstance(text, bool) and isinstance(text, str | int | float):
        try:
            number = int(text) if kind == "int" and not isinstance(text, float) else float(text)
        except (ValueError, OverflowError):
            number = math.nan
        if kind == "float" or isinstance(number, int):
            cast = None if math.isnan(number) else number
    if cast is None:
        raise ParameterError(
            where,
            need=f"{parameter.name} to be {parameter.description}",
            found=repr(value),
            fix=f"Its default is {parameter.default}.",
        )
    return cast
