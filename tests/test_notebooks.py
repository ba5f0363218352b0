"""The notebooks that a build writes: whole without the site, with exercises to be solved."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the pages draw")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
PAGE = """---
kernelspec:
  name: python3
---

# A *small* page

% a comment
Words. As a notebook: {download}`small.ipynb <_build/notebooks/small.ipynb>`. More
`[](code)` and $f[x](y)$, {download}`run.py <../examples/run.py>`,
[](other.md), [there](other.md#the-part-a_b),
[](other.md#mark), [below](#exercise-1-really), [](http://a.org),
[the
code](../code.py), ![a dot](dot.png).

```{toctree}
other
```

$$
x = 1
$$ (label)

```{literalinclude} ../code.py
:pyobject: One.two
:language: python
:dedent:
```

```{note}
Read [](other.md).
```

```{math}
y = 2
```

```python
[](not.md) {here}`x`
```

```{figure} dot.png
:alt: dot

A caption.
```

## Exercise `1`, *really*?

```{code-cell} ipython3
x = ...
```

```{code-cell} ipython3
:tags: [hide-cell, solution]

x = 1
```

```{code-cell} ipython3
:tags: [check]

assert x == 1
```
"""
CODE = """class One:
    @property
    def two(self):
        return 2

    three = 3
"""
MARKDOWN = """# A *small* page

Words. More
`[](code)` and $f[x](y)$, `examples/run.py`,
*Other, `it`* [`docs/other.md`], there [`docs/other.md`],
*The part: a_b* [`docs/other.md`], [below](#Exercise-1,-really?), [http://a.org](http://a.org),
the
code [`code.py`], ![a dot](attachment:dot.png).

$$
x = 1
$$

`code.py`, `One.two`:

```python
@property
def two(self):
    return 2
```

> **Note.** Read *Other, `it`* [`docs/other.md`].

$$
y = 2
$$

```python
[](not.md) {here}`x`
```

![dot](attachment:dot.png)

A caption.

## Exercise `1`, *really*?"""


@pytest.fixture(scope="module")
def notebooks():
    """The module that writes them."""
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(tmp_path):
    """A page with everything that a page may hold, in a repository of its own."""
    files = {
        "docs/small.md": PAGE,
        "docs/other.md": "# Other, `it`\n\n(mark)=\n## The part: a_b\n",
        "docs/dot.png": "dot",
        "examples/run.py": "",
        "code.py": CODE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "docs" / "small.md"


def text(cell):
    return "".join(cell["source"])


def code(book):
    return [text(cell) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_a_page_with_everything(notebooks, small):
    book = notebooks.notebook(small.parent / "../docs/small.md", root=small.parents[1])
    head, words, *rest = book["cells"]
    assert 'pip install -e ".[examples]"' in text(head)
    assert "`docs/small.md`" in text(head)
    assert re.sub(r"\n{3,}", "\n\n", text(words)) == MARKDOWN
    assert words["attachments"] == {"dot.png": {"image/png": "ZG90"}}
    assert [text(cell) for cell in rest] == ["x = ...", "assert x == 1"]
    assert rest[1]["metadata"] == {"tags": ["check"]}
    solved = notebooks.notebook(small, solutions=True, root=small.parents[1])
    assert code(solved) == ["x = ...", "x = 1", "assert x == 1"]


def test_links_lead_to_the_site_where_there_is_one(notebooks, small):
    book = notebooks.notebook(small, site="https://a.org/pyidl/", root=small.parents[1])
    words = text(book["cells"][1])
    assert (
        "[Other, `it`](https://a.org/pyidl/other.html), [there](https://a.org/pyidl/other.html#the-part-a_b)"
        in words
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            "{ref}`x`",
            r"small.md, line 9: the role \{ref\} is unknown; write it in plain Markdown",
        ),
        ("[](nowhere.md)", "the file nowhere.md"),
        ("[](other.md#no)", "the heading #no of other.md"),
        ("```{plot} x\n```", r"line 9: the directive \{plot\}"),
        (
            "```{literalinclude} ../code.py\n:lines: 1\n```",
            r"the directive \{literalinclude\} with \['lines'\]",
        ),
        ("word\n: its definition", "a line that begins with ': i'"),
        ("![](no.png)", "the file no.png"),
    ],
)
def test_what_has_no_form_in_a_notebook_is_refused(notebooks, small, wrong, reason):
    small.write_text(PAGE.split("% a comment")[0] + "\n" + wrong)
    with pytest.raises(ValueError, match=reason):
        notebooks.notebook(small, root=small.parents[1])


def test_every_page_with_cells_says_where_its_notebooks_are(notebooks):
    """And has the head by which Jupyter knows it, included code in colours, and cells that fit."""
    pages = notebooks.written()
    assert {"tutorial", "gradient_by_hand", "write_your_own"} <= {page.stem for page in pages}
    for page, names in pages.items():
        words = page.read_text("utf-8")
        assert words.startswith("---\njupytext:")
        assert "As a notebook:" in words
        for name in names:
            assert f"{{download}}`{name}.ipynb <_build/notebooks/{name}.ipynb>`" in words
    for page in DOCS.glob("*.md"):
        for piece in notebooks.pieces(page.read_text("utf-8")):
            assert piece.name != "literalinclude" or "language" in piece.options
            assert piece.name != "code-cell" or max(map(len, piece.lines)) <= 100  # the column
            folded = any(tag.startswith("hide-") for tag in piece.tags)
            assert folded == ("solution" in piece.tags)  # the site calls the fold a solution


def test_the_notebooks_are_plain_markdown(notebooks, tmp_path):
    notebooks.write(tmp_path)
    books = {path.stem: json.loads(path.read_text("utf-8")) for path in tmp_path.iterdir()}
    assert {"tutorial", "gradient_by_hand", "gradient_by_hand_solutions"} <= books.keys()
    for book in books.values():
        assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
        assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
        assert not any(cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code")
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                words = re.sub(
                    r"```\w*\n.*?```|`[^`]*`|\$\$.*?\$\$|\$.*?\$", "", text(cell), flags=re.S
                )
                assert not re.search(
                    r"\[\]\(|\]\([^)]*\.md|\)=$|^:\w|\{|`|As a notebook:", words, re.M
                ), words


def runs(cells):
    """Run them one by one, as Jupyter does; what each raised, and the names after it."""
    names = {"__name__": "__main__"}
    for cell in cells:
        try:
            exec(compile(cell, cell[:40], "exec"), names)
        except AssertionError as error:
            yield str(error), names
        else:
            yield None, names
        plt.close("all")


def test_exercises_have_to_be_solved(notebooks):
    """Checks fail on the dots, pass with the solution, and fail where it is a little wrong."""
    exercised = [page for page, names in notebooks.written().items() if len(names) > 1]
    assert exercised
    for page in exercised:
        cells = code(notebooks.notebook(page))
        solved = code(notebooks.notebook(page, solutions=True))
        solutions = [i for i, cell in enumerate(solved) if cell not in cells]
        checks = [solved[i + 1] for i in solutions]
        for cell, (raised, _) in zip(cells, runs(cells), strict=True):
            assert (raised == "no answer yet: replace the dots") == (cell in checks), cell
            assert raised is None or cell in checks
        answers = {}
        for i, (raised, names) in enumerate(runs(solved)):
            assert raised is None, solved[i]
            if i + 1 in solutions:
                answers = {name for name, value in names.items() if value is ...}
                assert answers
            if i in solutions:
                for name in answers:
                    twin = names | {name: 1.01 * np.asarray(names[name])}
                    with pytest.raises(AssertionError):
                        exec(solved[i + 1], twin)
