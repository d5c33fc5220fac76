"""The options that bind a key further than its scopes do, written once for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from broker.auth.rights import Rights

OPTIONS = {
    "bot": (list[str] | None, "An agent that it may use; without any, all."),
    "workflow": (list[str] | None, "A workflow that it may run; without any, all."),
    "content_type": (list[str] | None, "A media type that it may upload, like 'image/*'; without any, all."),
    "network": (list[str] | None, "A CIDR range that it may be used from; without any, all."),
    "max_bytes": (int | None, "The largest file that it may upload, in bytes."),
    "requests": (int | None, "How many requests it may make in a window; 0 sets no bound."),
    "bytes": (int | None, "How many bytes it may upload in a window; 0 sets no bound."),
    "window_seconds": (int | None, "How long a window is."),
    "inflight": (int | None, "How many uploads it may have running at once; 0 sets no bound."),
}
LISTS = {"bot": "bots", "workflow": "workflows", "content_type": "content_types", "network": "networks"}
LIMITS = {
    "requests": "requests",
    "bytes": "bytes",
    "window_seconds": "window_seconds",
    "inflight": "inflight_uploads",
}


def takes_rights(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all of ``OPTIONS``; what was given of them comes to it as ``bounds``."""

    def with_options(**given: Any) -> None:
        bounds = {name: given.pop(name) for name in OPTIONS}
        command(**given, bounds={name: value for name, value in bounds.items() if value not in (None, [])})

    own = [
        each
        for each in inspect.signature(command, eval_str=True).parameters.values()
        if each.name != "bounds"
    ]
    parameters = [*own, *(_parameter(name, kind, text) for name, (kind, text) in OPTIONS.items())]
    with_options.__doc__ = command.__doc__
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what typer reads
    return with_options


def bound(rights: Rights, bounds: Mapping[str, Any], cleared: list[str] | None = None) -> Rights:
    """The rights with ``bounds`` in place of what was; what is ``cleared`` binds no more."""
    unbound = {name: () if name in LISTS else None for name in cleared or () if name in OPTIONS}
    given: dict[str, Any] = {**unbound, **{name: _kept(value) for name, value in bounds.items()}}
    limits = {LIMITS[name]: value for name, value in given.items() if name in LIMITS}
    others = {LISTS.get(name, name): value for name, value in given.items() if name not in LIMITS}
    return replace(rights, **others, limits=replace(rights.limits, **limits))


def _parameter(name: str, kind: Any, text: str) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
