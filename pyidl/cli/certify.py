"""``certify``: what is proven about a model, for every input."""

from __future__ import annotations

from typing import Any

from pyidl.io import load

__all__ = ["certify"]


def certify(options: Any) -> int:
    """Print the certificate, and line by line what the other conditions say."""
    model = load(options.model)
    print(repr(model))
    certificate = model.certificate(explain=True)
    print(certificate)
    return 0 if certificate.proven else 1
