"""Fenced blocks, headings and links of the Markdown pages, as a reader sees them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
_FENCE = re.compile(r'^(`{3,})([^\n`]*)\n(.*?)^\1[ \t]*$', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that the block is, if its first line says so."""
        found = re.match(r'# (\S+\.py)\n', self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'


def blocks(language: str, pages=PAGES) -> list[Block]:
    found = []
    for page in pages:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count('\n', 0, match.start()) + 1
            if match[2].strip() == language:
                found.append(Block(page, line, language, match[3]))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block, comments left out."""
    text = block.text.replace('\\\n', ' ')
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    split = []
    for words in lines:
        while ';' in ' '.join(words) and any(w.endswith(';') for w in words):
            at = next(i for i, w in enumerate(words) if w.endswith(';'))
            split.append([*words[:at], words[at].removesuffix(';')])
            words = words[at + 1 :]
        split.append(words)
    return [words for words in split if words]


def without_fences(page: Path) -> str:
    text = _FENCE.sub('', page.read_text())
    return re.sub(r'`[^`\n]*`', '', text)


def links(page: Path) -> list[str]:
    return _LINK.findall(without_fences(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give the headings."""
    titles = re.findall(r'^#{1,6} +(.+?)$', _FENCE.sub('', page.read_text()), re.M)
    return {re.sub(r'[^\w\- ]', '', t.lower()).replace(' ', '-') for t in titles}
