"""What the doctor hands over: findings with what they mean and what to do."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

SEVERITIES = ('error', 'warning', 'note')
SHOWN = 5  # examples of a finding in the text; the JSON has up to KEPT
KEPT = 100
_WIDTH = 88


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        code: Short name, the same in every run.
        severity: 'error' (training or scores will fail or mislead), 'warning' (they
            suffer) or 'note' (worth knowing).
        what: The sentence, with numbers.
        meaning: What it means for weakly supervised segmentation.
        advice: What to do.
        count: Photos, classes or pairs it is about.
        examples: The first of them.
    """

    code: str
    severity: str
    what: str
    meaning: str
    advice: str
    count: int = 1
    examples: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        examples: Sequence[str],
        *,
        code: str,
        severity: str,
        what: str,
        meaning: str,
        advice: str,
    ) -> list['Finding']:
        """A finding about these, whose number is ``{n}`` in ``what``; none for none."""
        if not examples:
            return []
        return [
            cls(
                code=code,
                severity=severity,
                what=what.replace('{n}', str(len(examples))),
                meaning=meaning,
                advice=advice,
                count=len(examples),
                examples=tuple(examples[:KEPT]),
            )
        ]

    def text(self) -> str:
        """Four lines or so, for people."""
        parts = [_wrapped(f'{self.severity.upper()}  ', f'{self.what} [{self.code}]')]
        if self.examples:
            shown = ', '.join(self.examples[:SHOWN])
            more = self.count - len(self.examples[:SHOWN])
            shown += f' and {more} more' if more > 0 else ''
            parts.append(_wrapped('  where: ', shown))
        parts.append(_wrapped('  means: ', self.meaning))
        parts.append(_wrapped('  do:    ', self.advice))
        return '\n'.join(parts)


@dataclass(kw_only=True)
class Report:
    """All findings and what was looked at.

    Attributes:
        facts: Name -> number or text, in order.
        findings: Errors first.
    """

    facts: dict[str, object] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, findings: Sequence[Finding]) -> None:
        """Add findings and keep the worst in front."""
        self.findings += findings
        self.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))

    def number(self, severity: str) -> int:
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    def text(self) -> str:
        """For people, without colours."""
        facts = [f'{name}: {value}' for name, value in self.facts.items()]
        blocks = ['\n'.join(facts), *(finding.text() for finding in self.findings)]
        counts = [f'{severity}s: {self.number(severity)}' for severity in SEVERITIES]
        return '\n\n'.join([*blocks, ', '.join(counts)])

    def content(self) -> dict:
        """For JSON."""
        return {
            'facts': self.facts,
            'counts': {severity: self.number(severity) for severity in SEVERITIES},
            'findings': [asdict(finding) for finding in self.findings],
        }


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=' ' * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )
