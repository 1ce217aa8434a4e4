"""`languages`: names to be classified by the language they are written in.

The texts are the Unicode CLDR's names of territories, languages, scripts, currencies, units and months, as Babel ships
them, in 25 languages written in Latin letters. They have no published split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from loopline.data.raw import RawSample

# Similar languages make it hard: Danish and Norwegian, Czech and Slovak, Croatian and Slovene, Catalan and Spanish.
CODES = tuple("ca cs da de en es et fi fr hr hu id is it lt lv nb nl pl pt ro sk sl sv tr".split())  # noqa: SIM905
LEAST_LETTERS = 3  # shorter names are codes ("UV") that tell no language


def read() -> Iterator[RawSample]:
    """Yield each name with its language's code as the label, language by language, names sorted.

    A name that two of the languages share, in any case, has no right answer and is left out.
    """
    names = {code: _names(code) for code in CODES}
    languages = Counter(folded for of_language in names.values() for folded in of_language)
    for code, of_language in names.items():
        unshared = sorted(name for folded, name in of_language.items() if languages[folded] == 1)
        for number, name in enumerate(unshared, start=1):
            yield RawSample(path=f"{code}:{number}", image=None, text=name, label=code, boxes=None, split=None)


def _names(code: str) -> dict[str, str]:
    """Case-folded name -> name for one language; of names that differ only in case, one is kept."""
    from babel import Locale

    locale = Locale.parse(code)
    tables: list[Any] = [locale.territories, locale.languages, locale.scripts, locale.currencies]
    tables += [locale.months[context]["wide"] for context in ("format", "stand-alone")]
    raw_names = [name for table in tables for name in table.values()]
    # Babel can format a unit by name, but has no public way to list units.
    raw_names += [unit["long"] for unit in locale._data["unit_display_names"].values() if "long" in unit]
    names = sorted((" ".join(name.split()) for name in raw_names), reverse=True)
    return {name.casefold(): name for name in names if sum(map(str.isalpha, name)) >= LEAST_LETTERS}
