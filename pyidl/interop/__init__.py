"""Doors to other libraries.

Each module here imports the library that it is named after, and is imported by name:
`pyidl.interop.torch`. What a library knows of the layers of one wing stands in a file
named after both, `onnx_recurrent`, which is found by the class of a layer (`wings`).
"""

__all__: list[str] = []
