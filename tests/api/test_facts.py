"""Facts of a sentence: numbers, dates and units."""

import pytest

from api.verification.facts import Date, facts


@pytest.mark.parametrize(
    ("text", "language", "values"),
    [
        ("1,500 and 1.5", "english", [1500.0, 1.5]),
        ("1.500 und 1,5", "german", [1500.0, 1.5]),
        ("1 500 000 people, 1'000 more", "english", [1_500_000.0, 1000.0]),
        ("1,234.56 and 1.234,56", "english", [1234.56, 1234.56]),
        ("1.5 million, 2k, 3 Mrd", "english", [1.5e6, 2000.0, 3e9]),
        ("version 3.11.2 at 10.0.0.1", "english", ["3.11.2", "10.0.0.1"]),
        ("three hundred, twenty-one, 2nd", "english", [2.0, 300.0, 21.0]),
        ("B12, 4e7ba91, x2", "english", []),
        ("-5 °C but 3-4 times", "english", [-5.0, 3.0, 4.0]),
        ("zwölf Tage", "german", [12.0]),
        ("dix jours", "french", [10.0]),
        ("", None, []),
    ],
)
def test_numbers_are_compared_by_value(text: str, language: str | None, values: list[float | str]) -> None:
    assert [number.value for number in facts(text, language).numbers] == values


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("14 %", "%"),
        ("14 percent", "%"),
        ("$14", "$"),
        ("14 euros", "€"),
        ("€14", "€"),
        ("14 kg", "kg"),
        ("14 apples", None),
        ("14-day", "day"),
    ],
)
def test_units_are_compared(text: str, unit: str | None) -> None:
    assert [number.unit for number in facts(text, "english").numbers] == [unit]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("6:30", 390),
        ("6:30 pm", 1110),
        ("8 a.m.", 480),
        ("12 am", 0),
        ("8 Uhr", 480),
        ("14h30", 870),
        ("20.15 Uhr", 1215),
    ],
)
def test_times_are_compared(text: str, minutes: int) -> None:
    assert [(number.value, number.unit) for number in facts(text, None).numbers] == [(minutes, "clock")]


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-06-30", Date(2024, 6, 30)),
        ("30.06.2024", Date(2024, 6, 30)),
        ("30 June 2024", Date(2024, 6, 30)),
        ("June 30th, 2024", Date(2024, 6, 30)),
        ("30. Juni 2024", Date(2024, 6, 30)),
        ("le 30 juin 2024", Date(2024, 6, 30)),
        ("30 de junio de 2024", Date(2024, 6, 30)),
        ("June 2024", Date(2024, 6, None)),
        ("June 30", Date(None, 6, 30)),
        ("3/4/2024", Date(2024, 3, 4)),
    ],
)
def test_dates_are_compared(text: str, date: Date) -> None:
    found = facts(text, None)
    (readings,) = found.dates
    assert date in readings
    assert not found.numbers


def test_every_given_part_of_a_date_must_match() -> None:
    assert Date(2024, None, None).fits(Date(2024, 6, 30))
    assert not Date(2024, 6, 30).fits(Date(2024, 6, None))
