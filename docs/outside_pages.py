"""Brings pages from outside docs/ into the site, so that a page stands once and reads well in both places.

A hook of mkdocs (mkdocs.yml). Links are written for the repository. On the site, a link to one of its pages
leads to that page, and a link to another file of the repository becomes plain text. A link that leads nowhere
stays, and ``mkdocs build --strict`` fails on it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "deploy/dataflow/README.md": "clusters/dataflow.md",
    "deploy/object-stores.md": "clusters/object-stores.md",
    "deploy/spark/README.md": "clusters/spark.md",
    "deploy/train/README.md": "clusters/train.md",
    "manifests/README.md": "lists.md",
}
PICTURES = "benchmarks/results/*.png"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n.*?^```\n", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures."""
    pictures = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(PICTURES)}
    for source, target in (PAGES | {name: name for name in pictures}).items():
        files.append(File.generated(config, target, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mends a page's links, and shows the drawn picture in place of a Mermaid text.

    GitHub draws Mermaid itself; mkdocs-material would fetch a program from elsewhere for it.
    """
    assert page.file.abs_src_path is not None
    source = Path(page.file.abs_src_path).relative_to(REPOSITORY)
    picture = f"![The way of the data](assets/{source.stem}.svg)\n"
    markdown = MERMAID.sub(picture, markdown)
    here = posixpath.dirname(page.file.src_uri)

    def mended(link: re.Match[str]) -> str:
        mark, text, address, anchor = link.groups(default="")
        name = os.path.normpath(source.parent / address)
        target = PAGES.get(name, name.removeprefix("docs/"))
        if ":" in address:
            return link[0]
        if files.get_file_from_path(target) is not None:
            return f"{mark}[{text}]({posixpath.relpath(target, here)}{anchor})"
        return text if (REPOSITORY / name).exists() else link[0]

    return LINK.sub(mended, markdown)
