"""Named, repeatable measurements behind tools/benchmark.py.

``case`` says what a case is, ``functional_cases``, ``training_cases`` and
``tool_cases`` are those that there are, ``measure`` times one form of one case in a
process of its own, ``report`` makes rows, the table and the JSON of it. A new case is a
dataclass in one of the three files and an entry in its ``CASES``.
"""
