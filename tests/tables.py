"""All columns of a CSV file."""

from pyidl.cli.csv_table import opened


def read_table(path, delimiter=","):
    with opened(path, delimiter) as source:
        return source.read()
