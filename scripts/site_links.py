"""The README as the first page of the site, and links out of docs/ as links to the repository."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

# The target of a link of Markdown to a relative path, and its anchor.
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?)", re.MULTILINE)


def on_files(files, config):
    """Adds the first page."""
    readme = Path(config.config_file_path).with_name("README.md")
    files.append(File.generated(config, "index.md", abs_src_path=str(readme)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Writes links as the site has them."""
    folder = "" if page.file.src_uri == "index.md" else "docs"

    def as_on_site(link):
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        inside, is_inside = path.removeprefix("docs/"), path.startswith("docs/")
        if path == "README.md":
            return f"{link[1]}index.md{link[3]}"
        target = inside if is_inside else f"{config.repo_url}/blob/main/{path}"
        return f"{link[1]}{target}{link[3]}"

    return LINK.sub(as_on_site, markdown)
