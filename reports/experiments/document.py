"""Tables with notes, as text for a terminal and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.tables import aligned


@dataclass(frozen=True)
class Section:
    """A table of finished cells, the first column words, and what must be said about it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def as_text(sections: Sequence[Section]) -> str:
    """Return the sections for a terminal."""
    return "\n\n".join("\n".join(_text_lines(section)) for section in sections)


def as_markdown(title: str, intro: str, sections: Sequence[Section]) -> str:
    """Return a Markdown page."""
    blocks = [f"# {title}", intro]
    for section in sections:
        blocks += [f"## {section.title}", "\n".join(markdown_table(section.head, section.rows))]
        if section.notes:
            blocks.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(blocks) + "\n"


def _text_lines(section: Section) -> Iterator[str]:
    head, *rows = aligned(section.head, section.rows, labels=1)
    yield from (f"--- {section.title} ---", head, "-" * len(head), *rows)
    yield from (f"* {note}" for note in section.notes)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, the first column words, the others numbers."""
    return [_line(cells) for cells in (head, [":--", *["--:"] * (len(head) - 1)], *rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
