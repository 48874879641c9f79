"""Which options an export of a module takes that is not of this package."""

from __future__ import annotations

from exporter.errors import UsageError
from exporter.spec.export_spec import OPTIONS, ExportSpec

# All others choose or describe a model of this package.
_TAKEN = ("batch", "dynamic_batch", "opset", "runtimes", "engine", "targets", "threads")
_TAKEN += ("bench_seconds", "allow_ill_conditioned")


def check_for_module(spec: ExportSpec) -> None:
    """Raise `UsageError` if an option is set that means nothing for a module."""
    for name in OPTIONS:
        if name not in _TAKEN and getattr(spec, name) != getattr(ExportSpec(), name):
            raise UsageError(
                f"the option {name} means nothing for a module of your own",
                got=repr(getattr(spec, name)),
                remedy=f"omit it; the options that a module takes are {', '.join(_TAKEN)}",
            )
