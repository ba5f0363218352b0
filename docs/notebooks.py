"""Notebooks to take along: ``python docs/notebooks.py FOLDER`` writes them, as every build does.

A page with cells becomes NAME.ipynb, in plain Markdown, which needs neither the site nor MyST:
included code is inserted, links have a text and say which file of the repository they mean (or
lead to the site, where ``html_baseurl`` names it), pictures lie inside. Cells tagged ``solution``
are left out; they stand in NAME_solutions.ipynb. What is not known here is refused, with its line.
"""

import ast
import base64
import json
import mimetypes
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
FOLDER = "_build/notebooks"  # from here; pages link to it by {download}

HEAD = """*This is a page of pyidl's documentation, as a notebook{kind}. To run it, you need pyidl \
and what its examples draw with. There is no release on PyPI; in a clone of the repository, this \
installs both, and JupyterLab:*

```bash
python3 -m venv .venv && .venv/bin/pip install -e ".[examples]" jupyterlab
.venv/bin/jupyter lab
```

*Files that are named below, such as `{page}`, lie in the repository.*"""
ADMONITIONS = {"admonition", "caution", "danger", "hint", "important", "note", "tip", "warning"}
FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(\{(?P<name>[\w-]+)\})?(?P<argument>.*)")
OPTION = re.compile(r":([\w-]+):\s*(.*)")
HEADING = re.compile(r"#+ +(.*)")
LABEL = re.compile(r"\(([\w-]+)\)=$")
UNSEEN = re.compile(r"^%.*|^\([\w-]+\)=$|(?<=^\$\$) *\([\w:-]+\)$", re.M)
TAKE_ALONG = re.compile(r"As a notebook:\s+\{download\}`[^`]+`\. ?")
INLINE = re.compile(
    r"\{(?P<role>[\w:-]+)\}`(?P<content>[^`]+)`"
    r"|(?P<ticks>`+)(?!`)(?:.|\n(?!\n))+?(?<!`)(?P=ticks)(?!`)"
    r"|(?<!\\)(?P<dollars>\$\$?)(?:.|\n(?!\n))+?(?P=dollars)"
    r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)"
)


class Piece(NamedTuple):
    """Running text (no name, no fence), a block of code (a fence), or a directive (a name)."""

    line: int
    lines: list[str]
    fence: str = ""
    name: str = ""
    argument: str = ""
    options: dict[str, str] = {}  # noqa: RUF012  (never changed)

    @property
    def body(self):
        """What stands in it."""
        return "\n".join(self.lines)

    @property
    def tags(self):
        """Of a cell: ``:tags: [hide-cell, solution]``."""
        return re.findall(r"[\w-]+", self.options.get("tags", ""))


def pieces(text):
    """Text, code and directives of a page, one after another."""
    text = re.sub(r"\A---\n.*?\n---\n", lambda head: "\n" * head[0].count("\n"), text, flags=re.S)
    lines, plain, i = text.split("\n"), [], 0
    while i < len(lines):
        opened = FENCE.fullmatch(lines[i])
        if opened is None or "`" in opened["argument"]:
            plain.append(lines[i])
            i += 1
            continue
        close = re.compile(rf" *{opened['ticks']}{opened['ticks'][0]}* *")
        end = next((k for k in range(i + 1, len(lines)) if close.fullmatch(lines[k])), len(lines))
        yield Piece(i + 1 - len(plain), plain)
        inside, options = lines[i + 1 : end], {}
        while opened["name"] and inside and (option := OPTION.fullmatch(inside[0])):
            options[option[1]] = option[2]
            inside = inside[1:]
        if options and inside and not inside[0]:
            inside = inside[1:]
        fence = opened["indent"] + opened["ticks"]
        argument = opened["argument"].strip()
        yield Piece(i + 1, inside, fence, opened["name"] or "", argument, options)
        plain, i = [], end + 1
    yield Piece(len(lines) + 1 - len(plain), plain)


def headings(page):
    """What ``page.md#...`` may name: anchor -> heading. "" is the title, a label its section."""
    found, labels, heading = {}, [], ""
    running = (piece.lines for piece in pieces(page.read_text("utf-8")) if not piece.fence)
    for line in filter(None, (line for lines in running for line in lines)):
        if label := LABEL.match(line):
            labels.append(label[1])
            continue
        if matched := HEADING.match(line):
            heading = matched[1].strip()
            labels.append(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"))
            found.setdefault("", heading)
        found |= dict.fromkeys(labels, heading)
        labels = []
    return found


def source(path, name):
    """The lines of one function or class of a file, with its decorators; without a name, all."""
    text = path.read_text("utf-8")
    node = ast.parse(text)
    for part in name.split(".") if name else []:
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    if not name:
        return text.rstrip()
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


@dataclass
class Writer:
    """Plain Markdown of a page; `attachments` gathers its pictures."""

    page: Path
    site: str
    root: Path
    attachments: dict = field(default_factory=dict)

    def refuse(self, line, reason):
        """The build ends here."""
        cure = "write it in plain Markdown, or give it a form in docs/notebooks.py"
        raise ValueError(f"{self.page.name}, line {line}: {reason} is unknown; {cure}")

    def plain(self, piece):
        """A piece in Markdown."""
        if piece.name:
            return self.directive(piece)
        if piece.fence:
            return "\n".join([piece.fence + piece.argument, piece.body, piece.fence])
        for line, words in enumerate(piece.lines, piece.line):
            if words.startswith((": ", "+++")):
                self.refuse(line, f"a line that begins with {words[:3]!r}")
        text = TAKE_ALONG.sub("", UNSEEN.sub("", piece.body))
        line = lambda found: piece.line + text.count("\n", 0, found.start())  # noqa: E731
        return INLINE.sub(lambda found: self.inline(line(found), found), text)

    def directive(self, piece):
        """Its counterpart in Markdown."""
        options = piece.options
        if piece.name == "literalinclude" and options.keys() <= {"pyobject", "dedent", "language"}:
            file, name = self.file(piece.line, piece.argument), options.get("pyobject", "")
            code = source(file, name)
            code = textwrap.dedent(code) if "dedent" in options else code
            where = f"`{self.where(file)}`" + (f", `{name}`" if name else "")
            return f"{where}:\n\n```{options.get('language', '')}\n{code}\n```"
        if piece.name == "math":
            return f"$$\n{piece.body}\n$$"
        if piece.name in ("image", "figure"):
            picture = self.picture(piece.line, options.get("alt", ""), piece.argument)
            return f"{picture}\n\n{self.markdown(piece.body)}"
        if piece.name == "toctree":
            return ""
        if piece.name in ADMONITIONS:
            title = piece.argument if piece.name == "admonition" else piece.name.capitalize()
            words = f"**{title}.** {self.markdown(piece.body)}"
            return textwrap.indent(words, "> ", lambda line: True)
        return self.refuse(piece.line, f"the directive {{{piece.name}}} with {sorted(options)}")

    def inline(self, line, found):
        """A role, a link or a picture; code and mathematics stand as they are."""
        if found["role"] == "download":
            text, _, target = found["content"].rpartition(" <")
            if FOLDER in target:
                return f"`{text}`"
            return f"`{self.where(self.file(line, target.rstrip('>')))}`"
        if found["role"]:
            self.refuse(line, f"the role {{{found['role']}}}")
        if found["target"] is None:
            return found[0]
        make = self.picture if found["picture"] else self.link
        return make(line, found["text"], found["target"])

    def link(self, line, text, target):
        """With a text; to a place that the reader can find."""
        if "://" in target:
            return f"[{text or target}]({target})"
        name, _, anchor = target.partition("#")
        file = self.file(line, name) if name else self.page
        if file.suffix != ".md" or file.parent != self.page.parent:
            return f"{text or file.name} [`{self.where(file)}`]"
        if anchor not in (titles := headings(file)):
            self.refuse(line, f"the heading #{anchor} of {file.name}")
        if file == self.page:
            place = re.sub("[`*]", "", titles[anchor]).replace(" ", "-")  # as JupyterLab has it
            return f"[{text or titles[anchor]}](#{place})"
        if self.site:
            address = f"{self.site.rstrip('/')}/{file.stem}.html" + (f"#{anchor}" if anchor else "")
            return f"[{text or titles[anchor]}]({address})"
        return f"{text or '*' + titles[anchor] + '*'} [`{self.where(file)}`]"

    def picture(self, line, text, target):
        """It goes into the notebook."""
        file = self.file(line, target)
        data = base64.b64encode(file.read_bytes()).decode()
        self.attachments[file.name] = {mimetypes.guess_type(file.name)[0]: data}
        return f"![{text}](attachment:{file.name})"

    def file(self, line, name):
        """The file that a page means."""
        file = (self.page.parent / name).resolve()
        return file if file.is_file() else self.refuse(line, f"the file {name}")

    def where(self, file):
        """Its path in the repository."""
        return file.relative_to(self.root).as_posix()

    def markdown(self, text):
        """A text without cells, in plain Markdown."""
        return joined(self.plain(piece) for piece in pieces(text))


def joined(words):
    """Paragraphs, with an empty line between them."""
    return "\n\n".join(filter(None, (part.strip("\n") for part in words)))


def notebook(page, *, solutions=False, site="", root=DOCS.parent):
    """The notebook of a page, as the content of an .ipynb file."""
    cells, words, writer = [], [], Writer(page.resolve(), site, root.resolve())

    def add(kind, text, **more):
        lines = text.strip("\n").splitlines(keepends=True)
        name = {"id": f"cell-{len(cells)}", "cell_type": kind, "metadata": {}}
        cells.extend([name | {"source": lines} | more] if lines else [])

    kind = " with the solutions of its exercises" if solutions else ""
    add("markdown", HEAD.format(kind=kind, page=writer.where(writer.page)))
    for piece in [*pieces(page.read_text("utf-8")), Piece(0, [], name="code-cell")]:
        if piece.name != "code-cell":
            words.append(writer.plain(piece))
            continue
        add("markdown", joined(words), attachments=writer.attachments)
        words, writer.attachments = [], {}
        if solutions or "solution" not in piece.tags:
            metadata = {"tags": piece.tags} if piece.tags else {}
            add("code", piece.body, metadata=metadata, outputs=[], execution_count=None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def written(docs=DOCS):
    """The pages with cells, and of each the names of its notebooks: ``page -> [name, ...]``."""
    found = {}
    for page in sorted(docs.glob("*.md")):
        cells = [piece for piece in pieces(page.read_text("utf-8")) if piece.name == "code-cell"]
        if cells:
            solved = any("solution" in cell.tags for cell in cells)
            found[page] = [page.stem, f"{page.stem}_solutions"][: 1 + solved]
    return found


def write(folder, site=""):
    """Write all notebooks."""
    folder.mkdir(parents=True, exist_ok=True)
    for page, names in written().items():
        for name in names:
            content = notebook(page, solutions=name != page.stem, site=site)
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (folder / f"{name}.ipynb").write_text(text + "\n", "utf-8")


def setup(app):
    """Sphinx calls this."""
    app.connect(
        "builder-inited", lambda app: write(Path(app.srcdir) / FOLDER, app.config.html_baseurl)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
