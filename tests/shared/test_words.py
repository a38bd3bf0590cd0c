"""The lexemes by which documents and questions are matched, as PostgreSQL makes them."""

import random
import time
from collections.abc import Iterator

import psycopg
import pytest

from shared import db
from shared.db import Connection
from shared.system.servers import Servers
from shared.text import words

PARAGRAPHS = {
    "english": "The committee met on Tuesday and decided that the bridge should be closed while it is being repaired.",
    "german": "Der Ausschuss hat am Dienstag beschlossen, dass die Brücke während der Reparatur gesperrt werden soll.",
    "french": "Le comité a décidé mardi que le pont serait fermé pendant les travaux, qui vont durer dans ce cas deux ans.",
    "spanish": "El comité decidió el martes que el puente se cerrará mientras duren las obras de reparación para los coches.",
    "catalan": "El comitè va decidir dimarts que el pont es tancarà amb motiu de les obres dels propers mesos i també els carrers.",
    "italian": "Il comitato ha deciso martedì che il ponte sarà chiuso per la durata dei lavori, che non sono ancora iniziati.",
    "portuguese": "O comitê decidiu na terça-feira que a ponte será fechada para reparos, mas não há uma data para o início.",
    "romanian": "Comitetul a decis marți că podul va fi închis pentru reparații, care sunt planificate în această vară și mai târziu.",
    "dutch": "De commissie heeft dinsdag besloten dat de brug tijdens het herstel gesloten wordt voor het verkeer van de stad.",
    "danish": "Udvalget besluttede tirsdag, at broen skal lukkes, mens den bliver repareret, og at der ikke er nogen anden vej.",
    "norwegian": "Utvalget bestemte tirsdag at broen skal stenges mens den blir reparert, og at det ikke er noen annen vei av byen.",
    "swedish": "Utskottet beslutade på tisdagen att bron ska stängas medan den repareras, och att det inte finns någon annan väg.",
    "finnish": "Valiokunta päätti tiistaina, että silta suljetaan korjauksen ajaksi, mutta se ei ole vielä varmaa ja voi muuttua.",
    "hungarian": "A bizottság kedden úgy döntött, hogy a hidat a javítás idejére lezárják, és nem lehet majd rajta közlekedni.",
    "turkish": "Komite salı günü köprünün onarım için kapatılmasına karar verdi ve bu süre çok daha uzun olabilir diye açıkladı.",
    "indonesian": "Komite memutuskan pada hari Selasa bahwa jembatan itu akan ditutup untuk perbaikan dan tidak dapat dilalui.",
    "lithuanian": "Komitetas antradienį nusprendė, kad tiltas bus uždarytas, nes jis yra remontuojamas, ir tai truks iki rudens.",
    "irish": "Chinn an coiste Dé Máirt go bhfuil an droichead le dúnadh agus go mbeidh sé dúnta ar feadh na bliana.",
    "basque": "Batzordeak asteartean erabaki zuen zubia itxi egingo dela konpontzen duten bitartean, eta ez dago beste biderik.",
    "russian": "Во вторник комитет решил, что мост будет закрыт на время ремонта, и это не последнее решение.",
    "serbian": "Одбор је у уторак одлучио да ће мост бити затворен због поправке и да се не зна када ће бити отворен.",
    "greek": "Η επιτροπή αποφάσισε την Τρίτη ότι η γέφυρα θα κλείσει για επισκευές.",
    "arabic": "قررت اللجنة يوم الثلاثاء إغلاق الجسر من أجل الإصلاح في هذا الشهر.",
    "hindi": "समिति ने मंगलवार को फैसला किया कि मरम्मत के लिए पुल बंद रहेगा।",
    "nepali": "समितिले मंगलबार मर्मतका लागि पुल बन्द गर्ने निर्णय गरेको छ र यो एक महिना बन्द हुन्छ भने पनि थियो।",
    "tamil": "பாலம் பழுதுபார்ப்பதற்காக மூடப்படும் என்று குழு முடிவு செய்தது.",
    "armenian": "Հանձնաժողովը որոշեց, որ կամուրջը կփակվի վերանորոգման համար։",
    "yiddish": "דער קאָמיטעט האָט באַשלאָסן אַז די בריק װעט זײַן פֿאַרמאַכט און מען קען ניט פֿאָרן.",
}
SIMPLE = {
    "polish": "Komisja zdecydowała we wtorek, że most będzie zamknięty na czas remontu i nie wiadomo, kiedy to się zmieni.",
    "czech": "Výbor v úterý rozhodl, že most bude uzavřen po dobu opravy, která se protáhne, a není jasné, kdy to skončí.",
    "ukrainian": "У вівторок комітет вирішив, що міст буде закрито на час ремонту, і це не останнє рішення.",
    "bulgarian": "Комитетът реши във вторник мостът да се затвори за ремонт, който ще продължи до края на годината.",
    "vietnamese": "Ủy ban đã quyết định vào thứ Ba rằng cây cầu sẽ được đóng cửa để sửa chữa trong một năm.",
    "hebrew": "הוועדה החליטה ביום שלישי כי הגשר ייסגר על מנת לבצע את התיקון של הכביש.",
    "persian": "کمیته روز سه‌شنبه تصمیم گرفت که پل را برای تعمیر ببندد و این کار یک ماه طول می‌کشد.",
}


@pytest.mark.parametrize("language", PARAGRAPHS)
def test_a_document_gets_the_configuration_of_its_language(connection: Connection, language: str) -> None:
    assert words.configuration(PARAGRAPHS[language]) == language
    connection.execute("SELECT to_tsvector(%s::regconfig, 'x')", [language])


@pytest.mark.parametrize("language", SIMPLE)
def test_a_language_without_a_stemmer_is_not_stemmed_by_another_one(language: str) -> None:
    assert words.configuration(SIMPLE[language]) == "simple"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "x = foo(bar)[3];",
        "fn f(x: u8) {\n    y += x;\n}",
        "委員會決定關閉大橋。",
        "위원회는 다리를 닫기로 결정했다",
        "คณะกรรมการตัดสินใจปิดสะพาน",
    ],
)
def test_what_tells_no_language_gets_the_default(text: str) -> None:
    assert words.configuration(text) == "english"
    assert words.configuration(text, default="german") == "german"


def test_a_long_document_is_judged_by_all_of_it_and_fast() -> None:
    text = PARAGRAPHS["english"] * 20 + PARAGRAPHS["german"] * 50_000
    started = time.process_time()
    assert words.configuration(text) == "german"
    assert time.process_time() - started < 0.05


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("got ERR_CONN_RESET again", "err_conn_reset"),
        ("Error E-1042.", "e-1042"),
        ("the LM-317T/NOPB regulator", "lm-317t/nopb"),
        ("R1 = 4.7kΩ", "4.7kω"),
        ("R1 = 4.7k\u2126", "4.7kω"),
        ("import os.path.join(", "os.path.join"),
        ("(module::name)", "module::name"),
        ("see /etc/nginx/nginx.conf,", "etc/nginx/nginx.conf"),
        ("see /etc/nginx/nginx.conf,", "nginx.conf"),
        (r"C:\Windows\notepad.exe", "notepad.exe"),
        ("since 1.2.3-rc1.", "1.2.3-rc1"),
        ("v2.0 is out", "v2.0"),
        ("mail jane.doe@example.org!", "jane.doe@example.org"),
        ("mail jane.doe@example.org!", "jane.doe"),
        ("https://example.org/a/b.html?q=1", "example.org/a/b.html"),
        ("<https://example.org/>", "example.org"),
        ("C++, not C", "c++"),
        ("in C#.", "c#"),
        ("the .NET runtime", ".net"),
        ("due 2024-01-15", "2024-01-15"),
        ("call +49 (30) 123-4567", "49301234567"),
        ("LM‑317 with a typographic hyphen", "lm-317"),
        ("commit 4e7ba91", "4e7ba91"),
        ("ＥＲＲ＿ＣＯＮＮ", "err_conn"),
    ],
)
def test_a_term_is_found_literally(text: str, term: str) -> None:
    assert f"={term}" in words.exact(text)


@pytest.mark.parametrize(
    "text",
    [
        "plain words, and more.",
        "well-known",
        "-- * ... :: _ #",
        "0x80070057 E1042",
        "हिन्दी में",
        "e\u0301te\u0301",
        "...",
        "don't",
    ],
)
def test_what_postgresql_keeps_whole_is_no_exact_term(text: str) -> None:
    assert words.exact(text) == []


@pytest.fixture(scope="module", params=["C", "C.UTF-8"])
def locale(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A database of another locale: users bring theirs, and PostgreSQL's parser depends on it."""
    url = servers.database_url.replace("/askfolder?", "/postgres?")
    name = "words_" + request.param.replace(".", "_").replace("-", "_").lower()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE '{request.param}'")
    with db.connect(servers.database_url.replace("/askfolder?", f"/{name}?")) as connection:
        yield connection
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def lexemes(connection: Connection, text: str, configuration: str = "simple") -> list[str]:
    row = connection.execute(
        "SELECT tsvector_to_array(to_tsvector(%s::regconfig, %s) || array_to_tsvector(%s))",
        [configuration, words.searchable(text), words.exact(text)],
    ).fetchone()
    assert row is not None
    return list(row[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getUserById", {"getuserbyid", "get", "user", "by", "id"}),
        ("HTTPServer", {"httpserver", "http", "server"}),
        ("snake_case", {"snake", "case", "=snake_case"}),
        ("and/or", {"and", "or", "=and/or"}),
        ("“ÉTÉ”—Ärger…", {"été", "ärger"}),
        ("well-known", {"well-known", "well", "known"}),
        ("covid-19", {"covid", "19", "=covid-19"}),
        ("0x80070057", {"0x80070057"}),
        ("東京都に住む", {"東京", "京都", "都に", "に住", "住む"}),
        ("猫。", {"猫"}),
        ("PDF文件", {"pdf", "文件"}),
        ("학교에서", {"학교", "교에", "에서"}),
        ("ﾊﾟｿｺﾝ", {"パソ", "ソコ", "コン"}),
        ("กขค", {"กข", "ขค"}),
        ("हिन्दी में।", {"हिन्दी", "में"}),
        ("Ver\u00adtei\u00addigung", {"verteidigung"}),
        ("İstanbul", {"istanbul"}),
        ("ﬁle", {"file"}),
        ("x" * 300, {"x" * 128, "x" * 44}),
        ("", set()),
        ("www.example.org/a", {"www", "example", "org", "a", "=www.example.org/a", "=www.example.org"}),
    ],
)
def test_the_lexemes_are_the_same_in_every_locale(locale: Connection, text: str, expected: set[str]) -> None:
    assert set(lexemes(locale, text)) == expected


def test_parts_and_whole_find_each_other(connection: Connection) -> None:
    whole, parts = (
        lexemes(connection, "getUserById", "english"),
        lexemes(connection, "get the user by its id", "english"),
    )
    assert {"get", "user", "id"} <= set(whole) & set(parts)


@pytest.mark.parametrize(
    "unit",
    ["a", "_", "a_", "aB", "-", "a-", "0 ", "/a", "::", "漢", "a\u0301", "\ufdfa", "http://", "+", "A", "0", "0e1"],
)
def test_hostile_text_takes_no_time(unit: str) -> None:
    text = unit * (20_000_000 // len(unit))
    started = time.process_time()
    words.configuration(text), words.searchable(text), words.exact(text), words.question(text)
    assert time.process_time() - started < 2


def test_whatever_a_text_holds_fits_into_a_tsvector(connection: Connection) -> None:
    rare = "".join(random.Random(1).choices([chr(n) for n in range(0x20000, 0x2A6D0)], k=200_000))
    for text in (rare, "/".join(f"é{n}.x" for n in range(30_000)), " ".join(f"{n}.{n}" for n in range(30_000))):
        assert lexemes(connection, text)


def test_a_question_leaves_out_the_commonest_words_of_its_language_only() -> None:
    assert words.question("Which of the teams won the Super Bowl?")[0] == ["teams", "won", "super", "bowl"]
    assert words.question("Wer hat die Verteidigung der Panthers geführt?")[0] == [
        "verteidigung",
        "panthers",
        "geführt",
    ]
    assert words.question("Who is who?")[0] == ["who", "is"]  # nothing else is left of it
    assert words.question("What does ERR_CONN_RESET mean?") == (["err", "conn", "reset", "mean"], ["=err_conn_reset"])


def test_a_pasted_document_leaves_the_question_before_or_after_it() -> None:
    pasted = " ".join(f"word{n}" for n in range(5000))
    for text in (f"Where is needle? {pasted}", f"{pasted} Where is needle?"):
        found, _ = words.question(text)
        assert len(found) == words.QUESTION_WORDS
        assert "needle" in found
