"""The rules of support. tests/api/test_forgeries.py has hundreds of cases from real documents."""

import pytest

from api.verification.support import Evidence, is_lead_in, rate

TOWER = "The Harbour Tower is 54 m high. It was built in 1887 by Ada Frost."
BUILT = "It was built in 1887 by Ada Frost."
OPEN = "The boathouse opens at 6:30 in summer and at 8:00 in winter."
GIFT = "Gift cards cannot be returned."


@pytest.mark.parametrize(
    ("sentence", "quote", "status"),
    [
        # numbers, units, percent, words for numbers, times, dates
        ("It is 54 m high.", "the tower is 54 m high.", "supported"),
        ("It is 54 metres high.", "the tower is 54 m high.", "supported"),
        ("It is 54 feet high.", "the tower is 54 m high.", "unsupported"),
        ("It is 55 m high.", "the tower is 54 m high.", "unsupported"),
        ("1. It is 54 m high.", "the tower is 54 m high.", "supported"),
        ("A surplus of 2310 euros was reported.", "The treasurer reported a surplus of 2,310 euros.", "supported"),
        ("A surplus of 2,301 euros was reported.", "The treasurer reported a surplus of 2,310 euros.", "unsupported"),
        ("A surplus of 2,310 dollars was reported.", "The treasurer reported a surplus of 2,310 euros.", "unsupported"),
        ("The pond holds 1,500,000 litres.", "The pond holds 1.5 million litres.", "supported"),
        ("The pond holds 1.5 billion litres.", "The pond holds 1.5 million litres.", "unsupported"),
        ("Revenue rose by 14% to 8.2 million euros.", "Revenue rose by 14 percent to 8.2 million euros.", "supported"),
        ("Revenue rose by 14 euros.", "Revenue rose by 14 percent.", "unsupported"),
        ("The mount carries 11 kg.", "It carries eleven kilograms.", "supported"),
        ("The mount carries twelve kilograms.", "It carries eleven kilograms.", "unsupported"),
        ("The heap is turned every three weeks.", "Turn the heap every 3 weeks.", "supported"),
        ("Everybody has 28 weeks of holiday.", "Everybody has 28 days of paid holiday.", "unsupported"),
        ("It is due in 2 weeks and again in 2 weeks.", "It is due in 2 days and again in 2 weeks.", "unsupported"),
        ("It needs 1% more in the first year.", "It needs 7% more in the first year.", "unsupported"),
        ("It comes on the 3rd floor.", "Your desk is on the third floor.", "supported"),
        ("Version 3.11.2 is needed.", "It needs version 3.11.2 of it.", "supported"),
        ("Version 3.11.3 is needed.", "It needs version 3.11.2 of it.", "unsupported"),
        ("It opens at 8 am in winter.", OPEN, "supported"),
        ("It opens at 8 pm in winter.", OPEN, "unsupported"),
        ("It opens at 8:30 in winter.", OPEN, "unsupported"),
        ("The meeting is on June 30, 2024.", "The meeting takes place on 2024-06-30.", "supported"),
        ("The meeting is on July 30, 2024.", "The meeting takes place on 2024-06-30.", "unsupported"),
        ("The meeting is in June 2024.", "The meeting takes place on 30 June 2024.", "supported"),
        ("The meeting is on Monday.", "The meeting takes place on Tuesday.", "unsupported"),
        # names, identifiers, quoted words
        ("Ada Frost built it in 1887.", BUILT, "supported"),
        ("Bob Frost built it in 1887.", BUILT, "unsupported"),
        ("It was built in 1887 by Queen Victoria.", BUILT, "unsupported"),
        ("The tower was built in 1887.", BUILT, "supported"),
        ("Run `make up`.", "Run `make up` first.", "supported"),
        ("Run `make down`.", "Run `make up` first.", "unsupported"),
        ("The file is errors.log.", "The file is called events.log.", "unsupported"),
        ("It ends with ERR_RESET.", "The connection ends with ERR_CLOSED.", "unsupported"),
        ("The sign says “no dogs here”.", "The sign says “no cats here”.", "unsupported"),
        # negation and opposites
        ("Gift cards can be returned.", GIFT, "unsupported"),
        ("Gift cards can't be returned.", GIFT, "supported"),
        ("Gift cards cannot be returned.", "Gift cards can be returned.", "unsupported"),
        ("Swimming is forbidden in the pond.", "Nobody may swim in the pond!", "supported"),
        ("Revenue fell by 14 percent.", "Revenue rose by 14 percent.", "unsupported"),
        ("Always wear a vest.", "Never wear a vest.", "unsupported"),
        ("It may only be read.", "It may not only be read.", "unsupported"),
        ("Members are not more than half of them.", "Members are more than half of them.", "unsupported"),
        ("It takes no more than 5 days.", "It takes at most 5 days.", "supported"),
        # the words
        ("Elephants are grey.", GIFT, "unsupported"),
        ("Yes.", GIFT, "unsupported"),
        ("**Gift cards** cannot be returned.", GIFT, "supported"),
        # a part of a sentence may contradict the complete sentence
        ("Gift cards can be returned.", "It is not true that gift cards can be returned.", "unsupported"),
    ],
)
def test_the_rules_of_support(sentence: str, quote: str, status: str) -> None:
    assert rate(sentence, Evidence([quote])) == status


@pytest.mark.parametrize(
    ("sentence", "quote", "status"),
    [
        ("Der Teich fasst 1,5 Millionen Liter.", "The pond holds 1.5 million litres.", "supported"),
        ("Der Teich fasst 1,6 Millionen Liter.", "The pond holds 1.5 million litres.", "unsupported"),
        ("Die Sitzung ist am 30. Juni 2024.", "The meeting takes place on 30 June 2024.", "supported"),
        ("Die Sitzung ist am 3. Juni 2024.", "The meeting takes place on 30 June 2024.", "unsupported"),
        (
            "Ein Überschuss von 2.310 Euro wurde gemeldet.",
            "The treasurer reported a surplus of 2,310 euros.",
            "supported",
        ),
        ("Geschenkkarten können nicht zurückgegeben werden.", GIFT, "partly"),
        ("Geschenkkarten können immer zurückgegeben werden.", GIFT, "partly"),  # its words are not comparable
        ("Le fichier `a.toml` est lu au démarrage.", "The file `b.toml` is read at the start.", "unsupported"),
        ("La réunion aura lieu mardi à 14h30.", "The meeting is on Tuesday at 2:30 pm.", "supported"),
    ],
)
def test_sentences_in_other_languages(sentence: str, quote: str, status: str) -> None:
    question = "Was steht dort?" if sentence[:3] in ("Der", "Die", "Ein", "Ges") else "Qu'est-ce qui est dit ?"
    assert rate(sentence, Evidence([quote], question=question)) == status


def test_the_subject_may_come_from_the_surrounding_text() -> None:
    assert rate("The Harbour Tower was built in 1887.", Evidence([BUILT], around=TOWER)) == "partly"
    assert rate("The Harbour Tower was built in 1887.", Evidence([BUILT], titles="Harbour Tower")) == "supported"
    assert rate("The Harbour Tower was built in 1887.", Evidence([BUILT])) == "unsupported"


def test_a_sentence_without_a_quote_is_unsupported() -> None:
    assert rate(GIFT, Evidence([])) == "unsupported"


@pytest.mark.parametrize(
    ("line", "only"),
    [
        ("These are the steps:", True),
        ("## Gift cards", True),
        ("Gift cards may cost 5 euros:", False),
        ("Gift cards are stupid:", False),
        ("Bob says:", False),
        ("No gift cards:", True),
        ("Run `rm -rf`:", False),
    ],
)
def test_lead_ins_are_recognised(line: str, only: bool) -> None:
    assert is_lead_in(line, Evidence([GIFT], around=GIFT)) == only
