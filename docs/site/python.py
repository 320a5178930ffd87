"""The Python reference: a page for mkdocstrings, which takes signatures and docstrings from the client's source."""

from __future__ import annotations

import ast
from pathlib import Path

# The modules that are imported by name; what `hourglass` itself offers stands in its `__all__`.
EXTRAS = ("hourglass.sklearn", "hourglass.torch")

_HEAD = """# Python reference

What `import hourglass` offers, from its source. How it is used, with what each call gives and every error means, is
[the client's page](client.md). Arrays are numpy's; their shapes stand in the text of each call.
"""


def pages(root: Path) -> dict[str, str]:
    """The page of each name in the site."""
    sections: dict[str, list[str]] = {"Clients": [], "What they take and give": [], "Errors": []}
    for name, module in public_names(root / "client" / "hourglass" / "__init__.py").items():
        section = "Errors" if module == "hourglass.errors" else "What they take and give"
        sections["Clients" if name.endswith("Client") else section].append(f"hourglass.{name}")
    sections["In training loops"] = list(EXTRAS)
    lines = [_HEAD]
    for title, names in sections.items():
        lines += [f"## {title}\n", *(f"::: {name}\n" for name in names)]
    return {"python.md": "\n".join(lines)}


def public_names(module: Path) -> dict[str, str]:
    """The names in a module's `__all__`, in its order, each with the module that it comes from."""
    origins: dict[str, str] = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            origins |= {alias.name: node.module or "" for alias in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {name: origins[name] for name in ast.literal_eval(node.value)}
    raise ValueError(f"{module}: must have __all__")
