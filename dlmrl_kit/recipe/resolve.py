"""From bindings to the fully resolved recipe: what is dropped, what is an error, and the value of every parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

import gin

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import Parameter, nearest
from dlmrl_kit.core.validate import clipped, is_allowed
from dlmrl_kit.recipe.names import Names, required
from dlmrl_kit.recipe.source import Binding, Ref, format_value, leaves_of
from dlmrl_kit.recipe.table import BindingTable, Node
from dlmrl_kit.recipe.where import StatementError, UnusedBindingError, Where

_NO_EFFECT = " has no effect: "


@dataclass(frozen=True)
class Bound:
    """A parameter of the resolved recipe.

    Attributes:
        key: how a binding is written, ``"a/GroupMean.eps"``.
        value: literals and containers; references are ``Ref`` with full names.
        text: the value as gin text; None for a default that gin text cannot hold.
        where: the binding; None where the recipe does not bind it.
        is_default: whether the value is the constructor's default, bound or not.
    """

    key: str
    value: object
    text: str | None
    where: Where | None
    is_default: bool


@dataclass(frozen=True)
class Block:
    """A component of the resolved recipe with all its parameters.

    Attributes:
        name: with its scope, as written in recipes.
        scope: the scope that it is built in.
        gin_name: the full name.
        cls: the class.
        where: the binding that refers to it; None for the root.
        parameters: by name, in the order of the constructor.
    """

    name: str
    scope: str
    gin_name: str
    cls: type
    where: Where | None
    parameters: dict[str, Bound]


def resolve_recipe(table: BindingTable) -> tuple[tuple[Block, ...], list[str]]:
    """Finds the components of a recipe with all their parameters, and takes out bindings that nothing uses any more.

    Returns:
        The components, the root first, and a note for each binding that was dropped.

    Raises:
        RecipeError: undefined macros, slots with the wrong filling, bindings that nothing uses, parameters that are
            missing or of the wrong type.
    """
    table.check_macros()
    nodes = table.reach()
    _check_slots(table)
    notes = _Cleaner(table, nodes).notes()
    return tuple(_block(table, node, by) for node, by in nodes.items()), notes


def shown(value: object, names: Names) -> str:
    """Writes a value for a message: gin text with short names, cut where it is long."""
    try:
        text = format_value(value, names.display)
    except ValueError:
        text = f"<{type(value).__name__}>"
    return clipped(text)


def _check_slots(table: BindingTable) -> None:
    names = table.names
    for slot in names.slots:
        for binding in table.candidates(("", names.root), slot)[:1]:
            value = table.expand(binding.value, binding)
            fillings = value if slot in names.list_slots and isinstance(value, (list, tuple)) else [value]
            if value is gin.REQUIRED or (value is None and slot in names.optional_slots):
                continue
            for filling in fillings:
                _check_filling(names, slot, filling, binding.where)


def _check_filling(names: Names, slot: str, filling: object, where: Where) -> None:
    from dlmrl_kit.algorithm.bases import BASE_CLASSES

    key = names.key("", names.root, slot)
    article = "an" if slot[0] in "aeiou" else "a"
    if not isinstance(filling, Ref):
        raise StatementError(
            where,
            f"{key} needs {article} {slot}, got {shown(filling, names)}; write {key} = @Name(); {names.of_kind(slot)}",
        )
    name = names.display(filling.name)
    kind = names.components[filling.name].kind
    if kind != slot:
        kind_article = "an" if kind[0] in "aeiou" else "a"
        raise StatementError(
            where, f"{key} needs {article} {slot}, {name} is {kind_article} {kind}; {names.of_kind(slot)}"
        )
    base = BASE_CLASSES[slot]
    if not issubclass(names.class_of(filling.name), base):
        raise StatementError(where, f"{key} needs {article} {slot}: {name} must inherit from {_full(base)}")


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


class _Cleaner:
    """Takes bindings that nothing uses out of the table; it is an error if no override is the cause of that."""

    def __init__(self, table: BindingTable, nodes: dict[Node, Binding | None]) -> None:
        self.table = table
        self.names = table.names
        self.nodes = nodes
        self.used: set[Binding] = set()
        self.effective: set[Binding] = set()
        for node in nodes:
            for parameter in table.parameters(node):
                found = table.candidates(node, parameter)
                self.used.update(found)
                self.effective.update(found[:1])
        self.ever = table.ever_reached([("", table.names.root)])

    def notes(self) -> list[str]:
        """Removes what is not used from the table and says so, in the order of the recipe.

        Raises:
            UnusedBindingError: a binding or macro that nothing uses, and that no override put out of use.
            StatementError: an override that another binding comes before.
        """
        dropped: dict[Binding, str] = {}
        for binding in self.table.live.values():
            if binding.is_macro:
                continue
            if binding.where.command_line and binding not in self.effective:
                self._no_effect(binding)
            if binding not in self.used:
                dropped[binding] = self._why_dropped(binding)
        macros = self._unused_macros(list(dropped))
        self.table.dropped = [replace(b, value=self.table.expand(b.value, b)) for b in dropped]
        self.table.live = {k: b for k, b in self.table.live.items() if b not in dropped and b not in macros}
        reasons = {**dropped, **macros}
        return [f"dropped {self._statement(b)}: {reason}" for b, reason in reasons.items() if reason]

    def _statement(self, binding: Binding) -> str:
        return f"{self.table.key(binding)} = {shown(binding.value, self.names)}"

    def _why_dropped(self, binding: Binding) -> str:
        refusing = sorted({self.names.display(node[1]) for node in self.nodes if self.table.concerns(binding, node)})
        if refusing:
            return f"{' and '.join(refusing)} takes no parameter {binding.parameter}"
        if not any(self.table.concerns(binding, node) for node in self.ever):
            self._nothing_uses(binding)
        for old, new in self._replacements():
            gone = [n for n in self.table.nodes_in([old], old.scope) if n not in self.table.nodes_in([new], new.scope)]
            if any(self.table.concerns(binding, node) for node in self.table.ever_reached(gone)):
                return f"only the replaced {self._replaced(old, gone)} used it{self._carry_over(binding, new)}"
        return "only a replaced component used it"

    def _replacements(self) -> list[tuple[Binding, Binding]]:
        return sorted(self.table.overridden, key=lambda pair: pair[0].name != self.names.root)

    def _replaced(self, old: Binding, gone: list[Node]) -> str:
        what = old.parameter if old.name == self.names.root else self.table.key(old)
        return f"{what} {' and '.join(dict.fromkeys(self.names.display(name) for _, name in gone))}"

    def _carry_over(self, binding: Binding, new: Binding) -> str:
        # The same name need not mean the same thing, so nothing is carried over; but one may well expect it.
        for scope, gin_name in self.table.nodes_in([new], new.scope):
            bound = self.table.candidates((scope, gin_name), binding.parameter)
            if binding.parameter in self.names.parameters(gin_name) and not bound:
                return f"; {self.names.key(scope, gin_name, binding.parameter)} does not take the value over"
        return ""

    def _nothing_uses(self, binding: Binding) -> NoReturn:
        self._unused(binding, f"nothing uses {self._statement(binding)}: {self._unused_hint(binding)}")

    def _unused(self, binding: Binding, reason: str, joint: str = ": ") -> NoReturn:
        component = self.names.display(binding.name) if binding.name else ""
        raise UnusedBindingError(binding.where, reason, joint, component, binding.parameter)

    def _unused_hint(self, binding: Binding) -> str:
        name = self.names.display(binding.name)
        unscoped = [node for node in self.nodes if binding.name in self.names.targets(node[1])]
        if unscoped:
            return f"{name} is used, but never in scope {binding.scope!r} (a reference @{binding.scope}/{name}() is)"
        component = self.names.components.get(binding.name)
        if component is None:
            return f"no component of this recipe is based on {name}"
        if component.kind not in self.names.slots:
            return f"no component of this recipe refers to {name}"
        present = [self.names.display(n) for _, n in self.nodes if self.names.components[n].kind == component.kind]
        has = f" (its {component.kind} is {' and '.join(present)})" if present else ""
        return f"this recipe does not use {name}{has}; --use {component.kind}={name} would put it in"

    def _no_effect(self, binding: Binding) -> NoReturn:
        concerned = [node for node in self.nodes if self.table.concerns(binding, node)]
        winners = [w for node in concerned for w in self.table.candidates(node, binding.parameter)[:1]]
        if winners:
            hint = f"{self.table.key(winners[0])} ({winners[0].where}) comes before it"
            raise StatementError(binding.where, hint, joint=_NO_EFFECT)
        if concerned:
            refusing = " and ".join(sorted({self.names.display(node[1]) for node in concerned}))
            self._unused(binding, f"{refusing} takes no parameter {binding.parameter}", _NO_EFFECT)
        self._unused(binding, self._unused_hint(binding), _NO_EFFECT)

    def _unused_macros(self, dropped: list[Binding]) -> dict[Binding, str]:
        table = self.table
        in_use = table.macro_closure(b for b in table.live.values() if not b.is_macro and b not in dropped)
        # Used once, by something dropped or overridden. Only what the command line did is worth a note: a recipe that
        # overrides its base does so on purpose.
        by_note = table.macro_closure([*dropped, *(old for old, new in table.overridden if new.where.command_line)])
        silently = table.macro_closure(old for old, _ in table.overridden)
        found: dict[Binding, str] = {}
        for macro in table.live.values():
            name = macro.parameter
            if not macro.is_macro or name in in_use:
                continue
            if macro.where.command_line or name not in by_note | silently:
                self._unused_macro(macro, in_use)
            found[macro] = "only bindings that were dropped or overridden used it" if name in by_note else ""
        return found

    def _unused_macro(self, macro: Binding, in_use: set[str]) -> NoReturn:
        hint = f"; {nearest(macro.parameter, in_use)}" if in_use else ""
        self._unused(
            macro,
            f"nothing uses the macro {macro.parameter} in this recipe{hint} (a parameter is written "
            "Component.parameter = value)",
        )


def _block(table: BindingTable, node: Node, by: Binding | None) -> Block:
    scope, gin_name = node
    names = table.names
    where = by.where if by else None
    parameters = {}
    for name in table.parameters(node):
        spec = names.parameters(gin_name).get(name)
        key = names.key(scope, gin_name, name)
        for binding in table.candidates(node, name)[:1]:
            value = table.expand(binding.value, binding)
            if any(leaf is gin.REQUIRED for leaf in leaves_of(value)):
                _missing(table, node, spec or Parameter(name, None, ""), binding.where)
            if gin_name != names.root or name not in names.declared_slots or value is not None:
                parameters[name] = _bound(names, gin_name, key, spec, value, binding.where)
            break  # an empty slot of a plugin is left out: the recipe does not need the plugin
        else:
            if spec is not None and not required(spec):
                parameters[name] = _default(names, key, spec)
            elif spec is not None:
                _missing(table, node, spec, where)
    written = names.key(scope, "", names.display(gin_name))
    cls = names.class_of(gin_name)
    return Block(written, scope, gin_name, cls, where, _anchored(table, written, cls, parameters))


def _anchored(table: BindingTable, name: str, cls: type, parameters: dict[str, Bound]) -> dict[str, Bound]:
    """Replaces settings that depend on the current folder by what they mean in it: a saved recipe works in any."""
    if not issubclass(cls, Dependent):
        return parameters
    literals = {n: b.value for n, b in parameters.items() if not any(isinstance(x, Ref) for x in leaves_of(b.value))}
    try:
        found = cls.anchored(literals)
        changed = {
            n: replace(parameters[n], value=value, text=format_value(value, table.names.display), is_default=False)
            for n, value in found.items()
        }
    except Exception as error:  # a plugin's class may do anything
        raise RecipeError(f"{table.source}: {name}.anchored failed with {type(error).__name__}: {error}") from error
    return {**parameters, **changed}


def _bound(names: Names, gin_name: str, key: str, spec: Parameter | None, value: object, where: Where) -> Bound:
    text = format_value(value, names.display)
    default = spec is not None and _text_or_none(spec.default) == text
    # A default may contradict its annotation (``x: int = None``), and a resolved recipe writes it out. What fills the
    # slots of the root has been checked already.
    checked = default or gin_name == names.root
    if spec is not None and not checked and not names.fits(gin_name, spec.name, value):
        got = f"{shown(value, names)}{_bracket_hint(names, gin_name, spec.name, value)}"
        raise StatementError(where, f"{key} must be {names.type_of(gin_name, spec)}, got {got}")
    parameter = "" if spec is None else spec.name
    if not default and not is_allowed(names.class_of(gin_name), parameter, value):
        raise StatementError(where, f"{key} must be finite, got {shown(value, names)}")
    return Bound(key, value, text, where, default)


def _bracket_hint(names: Names, gin_name: str, parameter: str, value: object) -> str:
    if isinstance(value, list) and names.fits(gin_name, parameter, tuple(value)):
        return " (square brackets make a list, round ones a tuple)"
    if isinstance(value, tuple) and names.fits(gin_name, parameter, list(value)):
        return " (round brackets make a tuple, square ones a list)"
    return ""


def _default(names: Names, key: str, spec: Parameter) -> Bound:
    text = _text_or_none(spec.default)
    return Bound(key, spec.default, text, None, True)


def _text_or_none(value: object) -> str | None:
    try:
        return format_value(value)
    except ValueError:
        return None


def _missing(table: BindingTable, node: Node, spec: Parameter, where: Where | None) -> NoReturn:
    scope, gin_name = node
    names = table.names
    key = names.key(scope, gin_name, spec.name)
    if gin_name == names.root:
        fix = f"add `{key} = @Name()` to the recipe, or --use {spec.name}=Name; {names.of_kind(spec.name)}"
        raise _refusal(table, where, f"{key} is required and not set: {fix}")
    wanted = names.type_of(gin_name, spec)
    annotation = f" ({wanted})" if wanted else ""
    # A swap tends to lose a value that its namesake needs; what it was is the best hint at what to set.
    lost = [b for b in table.dropped if b.parameter == spec.name]
    was = f" ({table.key(lost[0])}, which was dropped, was {shown(lost[0].value, names)})" if lost else ""
    fix = f"add `{key} = ...` to the recipe, or --set {key}=VALUE{was}"
    raise _refusal(table, where, f"{key}{annotation} is required and not set: {fix}")


def _refusal(table: BindingTable, where: Where | None, reason: str) -> RecipeError:
    return StatementError(where, reason) if where else RecipeError(f"{table.source}: {reason}")
