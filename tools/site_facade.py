"""An extension of Griffe, which reads the API for the site: blocking classes have methods of the asynchronous ones.

Griffe reads sources without running them, and there a method of a facade is the assignment of a call,
``solve = async_to_sync(aio.Session.solve)``. Here it becomes what the call returns.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Docstring, ExprCall, Extension, Function, Module, Parameters

FACADE = "blocking.api"


class FacadeExtension(Extension):
    """Replaces assignments in the facade's classes by methods and properties."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Change the package ``host_client`` after it was read."""
        if pkg.path != "host_client":
            return
        for cls in pkg[FACADE].classes.values():
            if cls.is_alias:
                continue
            for name, attribute in list(cls.attributes.items()):
                if isinstance(attribute.value, ExprCall):
                    _replace(pkg, cls, name, attribute)
            cls.set_member("__init__", Function("__init__"))  # nobody calls it


def _replace(pkg: Module, cls: Class, name: str, attribute: Attribute) -> None:
    call = str(attribute.value.function)
    behind = re.search(r"Facade\[(\w+)\.(\w+)\]", "".join(map(str, cls.bases)))
    if behind is None or not call.startswith(("async_to_sync", "Attribute")):
        return
    original = pkg[behind[1]][behind[2]].members.get(name)
    docstring = original.docstring.value if original is not None and original.docstring else ""
    if call == "async_to_sync":
        replaced = Function(
            name,
            parameters=Parameters(*original.parameters),
            returns=original.returns,
            lineno=attribute.lineno,
            endlineno=attribute.endlineno,
        )
        docstring = re.sub(r"\basync (?=with )|\bawait ", "", docstring)
    else:
        replaced = Attribute(name, annotation=attribute.value.function.slice, lineno=attribute.lineno)
        replaced.labels |= {"property"}
        if attribute.value.arguments:
            docstring = str(attribute.value.arguments[0])[1:-1]
    replaced.docstring = Docstring(docstring, parent=replaced)
    cls.set_member(name, replaced)
