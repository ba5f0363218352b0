"""Doors to other libraries.

Each module here imports the library that it is named after, and is imported by name:
`pyidl.interop.torch`.
"""

__all__: list[str] = []
