"""Names in docstrings: links where the site has an object of that name, plain code where it has none.

The docstrings say `Name` in single backticks for what they speak of: classes and functions, but arguments and attributes too.
Sphinx's own default roles either link nothing or warn of each argument. A short name is looked up nearest first, so that
theory's `Fixed` is not fwlora's. A role that a page writes out, {py:class}`theory.step_sizes.Fixed`, is Sphinx's and must lead
somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.transforms.post_transforms import ReferencesResolver, SphinxPostTransform
from sphinx.util.nodes import find_pending_xref_condition, make_refnode

ROLE = "backtick"
LONE = re.compile(r"^(\s*(?::[^:]+:\s+)?)(\w\.)$")


class Backtick(XRefRole):
    """Leaves a mark for `Names`, with the place that the name was said at."""

    def __init__(self) -> None:
        super().__init__(innernodeclass=nodes.literal)

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """The module and the class that the docstring belongs to."""
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        return title, target


class Names(SphinxPostTransform):
    """Resolves backticks, and the types and exceptions of signatures and fields, before Sphinx resolves the rest.

    A type may be another library's: it stays plain. An exception under "Raises:" that is neither the site's nor Python's is
    left to Sphinx, which warns.
    """

    default_priority = ReferencesResolver.default_priority - 1

    def run(self, **kwargs: Any) -> None:
        """Replaces what is resolved."""
        domain = self.env.domains["py"]
        assert isinstance(domain, PythonDomain)
        for node in list(self.document.findall(pending_xref)):
            by_a_page = "refwarn" in node and node["reftype"] != ROLE  # signatures and fields have no such mark
            if by_a_page or node.get("refdomain") not in {"", "py"}:
                continue
            name = find(domain.objects, node["reftarget"], node.get("py:module"), node.get("py:class"))
            content = find_pending_xref_condition(node, "resolved" if name else "*")
            inner = (content.children if content is not None else node.children) or [nodes.Text(node["reftarget"])]
            if name:
                entry = domain.objects[name]
                link = make_refnode(self.app.builder, self.env.docname, entry.docname, entry.node_id, inner, name)
                node.replace_self(link)
            elif node["reftype"] != "exc":
                node.replace_self(inner)


def find(known: Mapping[str, ObjectEntry], target: str, module: str | None, kind: str | None) -> str | None:
    """The full name of an object of the site.

    Args:
        known: by full name.
        target: as written.
        module: in which it was written.
        kind: the class in which it was written.

    Returns:
        The nearest of that name: of the class, of the module, as it stands; else the only class, function or module in the
        package, or the only class in the site, whose full name ends so; None where there is none or more than one. `step` is
        thus an argument, and not some class's attribute.
    """
    target = target.removesuffix("()").lstrip("~.")
    near = [f"{module}.{kind}.{target}", f"{module}.{target}", target]
    found = next((name for name in near if name in known), None)
    if found is not None or not target.replace(".", "").isidentifier():
        return found
    kinds = {"class", "exception", "function", "module"} if "." not in target else {entry.objtype for entry in known.values()}
    ends = {
        (entry.docname, entry.node_id): name
        for name, entry in known.items()
        if entry.objtype in kinds and name.endswith(f".{target}")
    }
    home = [name for name in ends.values() if name.split(".")[0] == str(module).split(".")[0]]
    is_type = target.rpartition(".")[2][0].isupper()
    choices = home or (list(ends.values()) if is_type else [])
    return choices[0] if len(choices) == 1 else None


def shield(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keeps "steps: T." a sentence: reStructuredText takes a lone letter with a dot for the head of an empty list."""
    lines[:] = [LONE.sub(r"\1\\\2", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the role, the transform and the shield."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_role(ROLE, Backtick())
    app.add_post_transform(Names)
    app.connect("autodoc-process-docstring", shield, priority=600)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
