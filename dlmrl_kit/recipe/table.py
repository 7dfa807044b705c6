"""The bindings of a recipe: which one is live, which components they reach, what macros stand for.

A component is built in a scope, so what is reached are *nodes*: pairs (scope, full name). As in gin, a reference
without a scope stays in the scope of the component that holds it, and a component in scope ``a/b`` sees the bindings of
``a/b``, ``a`` and no scope, in this order. Macros are put in place before scopes apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import gin

from dlmrl_kit.core.registry import nearest
from dlmrl_kit.recipe.names import Names, refs
from dlmrl_kit.recipe.source import MAX_NESTING, Binding, Macro, Ref, format_value, leaves_of, replace_leaves
from dlmrl_kit.recipe.where import StatementError

Node: TypeAlias = tuple[str, str]
"""Scope and full name of a component that is built."""

BindingKey: TypeAlias = tuple[str, str, str]
"""Scope, full name ("" for a macro) and parameter of a binding."""

_REQUIRED = ("gin.REQUIRED", "REQUIRED")


def scopes(scope: str) -> list[str]:
    """Lists the scopes whose bindings apply in ``scope``, nearest first: ``"a/b"``, ``"a"``, ``""``."""
    parts = scope.split("/") if scope else []
    return ["/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


class BindingTable:
    """Holds bindings with their names resolved; of those with the same key the last is live and overrides the rest."""

    def __init__(self, names: Names, source: str) -> None:
        self.names = names
        self.source = source
        self.live: dict[BindingKey, Binding] = {}
        self.overridden: list[tuple[Binding, Binding]] = []
        self.dropped: list[Binding] = []
        self._in_file: dict[tuple[str, BindingKey], Binding] = {}

    def add(self, binding: Binding) -> None:
        """Adds a binding, which overrides an earlier one of the same key.

        Raises:
            StatementError: an unknown component or parameter, or the same key twice in one file.
        """
        binding = self._resolve(binding)
        key = (binding.scope, binding.name, binding.parameter)
        if not binding.where.command_line:
            first = self._in_file.setdefault((binding.where.source, key), binding)
            if first is not binding:
                raise StatementError(
                    binding.where,
                    f"{self.key(binding)} is bound twice in this file, first in line {first.where.line}; remove one of "
                    "the two",
                )
        if key in self.live:
            self._check_order(self.live[key], binding)
            self.overridden.append((self.live.pop(key), binding))
        self.live[key] = binding

    def _check_order(self, old: Binding, new: Binding) -> None:
        """Checks that a file does not bind what a file that it includes further down binds otherwise.

        Raises:
            StatementError: it does; whoever wrote the line thought that it counts.
        """
        for include in new.included:
            above = include.source == old.where.source and (old.where.line or 0) < (include.line or 0)
            if above and old.value != new.value:
                raise StatementError(
                    old.where,
                    f"{self.key(old)} has no effect: the include in line {include.line} binds it again, in "
                    f"{new.where}; move the include above it, or remove this line",
                )

    def _resolve(self, binding: Binding) -> Binding:
        name, where = binding.name, binding.where
        kind = None
        if not binding.is_macro:
            name = self.names.target(name, where)
            self.names.check_parameter(name, binding.parameter, where)
            kind = binding.parameter if name == self.names.root else None

        def change(leaf: object) -> object:
            if not isinstance(leaf, Ref):
                return leaf
            if not leaf.evaluate:
                # A component that was given the class would build it without what the recipe binds.
                reference = format_value(leaf)
                raise StatementError(where, f"the reference {reference} lacks its parentheses; write {reference}()")
            return replace(leaf, name=self.names.component(leaf.name, where, kind))

        return replace(binding, name=name, value=replace_leaves(binding.value, change))

    def key(self, binding: Binding) -> str:
        """Writes the left side of a binding."""
        return self.names.key(binding.scope, binding.name, binding.parameter)

    def macro(self, name: str) -> Binding | None:
        """Returns the live definition of a macro, or None."""
        return self.live.get(("", "", name))

    def check_macros(self) -> None:
        """Checks that every macro that is used is defined, and none by itself.

        Raises:
            StatementError: one is not.
        """
        for binding in self.live.values():
            for name in macros(binding.value):
                if self.macro(name) is None:
                    known = [b.parameter for b in self.live.values() if b.is_macro]
                    hint = nearest(name, known) if known else f"add a line `{name} = ...`"
                    raise StatementError(binding.where, f"macro %{name} is not defined; {hint}")
        for binding in self.live.values():
            self.expand(binding.value, binding)

    def expand(self, value: object, binding: Binding, path: tuple[str, ...] = ()) -> object:
        """Replaces every macro in ``value`` by what it stands for, and ``%gin.REQUIRED`` by ``gin.REQUIRED``.

        Raises:
            StatementError: macros that stand for each other in a circle or too deeply, or for a dict key that cannot be
                one.
        """

        def change(leaf: object) -> object:
            if not isinstance(leaf, Macro):
                return leaf
            if leaf.name in _REQUIRED:
                return gin.REQUIRED
            if leaf.name in path:
                raise StatementError(binding.where, f"macros in a circle: {' -> '.join([*path, leaf.name])}")
            if len(path) >= MAX_NESTING:
                raise StatementError(binding.where, f"macros are nested more than {MAX_NESTING} deep")
            definition = self.live["", "", leaf.name]
            return self.expand(definition.value, binding, (*path, leaf.name))

        try:
            return replace_leaves(value, change)
        except TypeError:
            raise StatementError(binding.where, "a list or dict cannot be the key of a dict") from None
        except RecursionError:
            raise StatementError(binding.where, "values and macros are nested too deeply") from None

    def candidates(self, node: Node, parameter: str) -> list[Binding]:
        """Lists the live bindings for a parameter of a node; the first is the one that counts.

        A nearer scope wins; within a scope the command line wins over files, then the component's own binding over
        those of its base classes.
        """
        scope, gin_name = node
        found: list[Binding] = []
        targets = self.names.targets(gin_name)
        if parameter not in self.names.parameters(gin_name):
            targets = targets[:1]  # one of **kwargs: nothing says that it is the base class's
        for prefix in scopes(scope):
            here = [self.live[prefix, t, parameter] for t in targets if (prefix, t, parameter) in self.live]
            found += sorted(here, key=lambda binding: not binding.where.command_line)
        return found

    def parameters(self, node: Node) -> list[str]:
        """Lists the parameters of a node in the constructor's order, then those of ``**kwargs`` that are bound."""
        known = self.names.parameters(node[1])
        extra = [p for (scope, t, p) in self.live if t == node[1] and p not in known and scope in scopes(node[0])]
        return list(dict.fromkeys([*known, *extra]))

    def reach(self) -> dict[Node, Binding | None]:
        """Finds every component that is built, in depth-first order, with the binding that refers to it.

        Raises:
            StatementError: components that refer to each other in a circle.
        """
        found: dict[Node, Binding | None] = {}

        def visit(node: Node, by: Binding | None, path: tuple[Node, ...]) -> None:
            if by is not None and (node in path or len(path) > MAX_NESTING):
                circle = " -> ".join(self.names.display(name) for _, name in [*path, node])
                raise StatementError(by.where, f"components refer to each other in a circle: {circle}")
            if node in found:
                return
            found[node] = by
            for parameter in self.parameters(node):
                for binding in self.candidates(node, parameter)[:1]:
                    for ref in refs(self.expand(binding.value, binding)):
                        visit((ref.scope or node[0], ref.name), binding, (*path, node))

        visit(("", self.names.root), None, ())
        return found

    def ever_reached(self, start: Iterable[Node]) -> set[Node]:
        """Finds the nodes that can be reached from ``start`` through any binding, overridden or not."""
        everything = [*self.live.values(), *(old for old, _ in self.overridden)]
        found: set[Node] = set()
        todo = list(start)
        while todo:
            node = todo.pop()
            if node in found or len(found) > 10_000:
                continue
            found.add(node)
            for binding in everything:
                if self.concerns(binding, node):
                    todo += self.nodes_in([binding], node[0])
        return found

    def concerns(self, binding: Binding, node: Node) -> bool:
        """Tells whether a binding is for this node: its component or a base class of it, in a scope that applies."""
        return binding.name in self.names.targets(node[1]) and binding.scope in scopes(node[0])

    def nodes_in(self, bindings: Iterable[Binding], scope: str) -> list[Node]:
        """Lists the nodes that the values of bindings refer to, also through macros, overridden or not."""
        everything = [*self.live.values(), *(old for old, _ in self.overridden)]
        bindings = list(bindings)
        used = self.macro_closure(bindings)
        definitions = [b for b in everything if b.is_macro and b.parameter in used]
        return [(ref.scope or scope, ref.name) for b in [*bindings, *definitions] for ref in refs(b.value)]

    def macro_closure(self, bindings: Iterable[Binding]) -> set[str]:
        """Finds the macros that bindings use, also through other macros, overridden or not."""
        definitions: dict[str, list[Binding]] = {}
        for binding in [*self.live.values(), *(old for old, _ in self.overridden)]:
            if binding.is_macro:
                definitions.setdefault(binding.parameter, []).append(binding)
        found: set[str] = set()
        todo = list(bindings)
        while todo:
            for name in macros(todo.pop().value):
                if name not in found:
                    found.add(name)
                    todo += definitions.get(name, [])
        return found


def macros(value: object) -> list[str]:
    """Lists the macros in a value, without ``%gin.REQUIRED``."""
    return [leaf.name for leaf in leaves_of(value) if isinstance(leaf, Macro) and leaf.name not in _REQUIRED]
