"""The language of a text, as the text search configuration that its document gets."""

import pytest

from shared.db import Connection
from shared.text import languages

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
    assert languages.configuration(PARAGRAPHS[language]) == language
    connection.execute("SELECT to_tsvector(%s::regconfig, 'x')", [language])


@pytest.mark.parametrize("language", SIMPLE)
def test_a_language_without_a_stemmer_is_not_stemmed_by_another_one(language: str) -> None:
    assert languages.configuration(SIMPLE[language]) == "simple"


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
    assert languages.configuration(text) == "english"


def test_a_long_document_is_judged_by_samples_of_all_of_it() -> None:
    assert languages.configuration(PARAGRAPHS["english"] * 20 + PARAGRAPHS["german"] * 50_000) == "german"


@pytest.mark.parametrize("unit", ["a", "_", "aB", "-", "0 ", "::", "漢", "a\u0301", "\ufdfa", "http://", "\ud800"])
def test_any_text_has_a_configuration(unit: str) -> None:
    assert languages.configuration(unit * (20_000_000 // len(unit)))
    assert languages.configuration(unit)


def test_stop_words_are_lower_case_and_each_language_has_some() -> None:
    for language, stop_words in languages.STOP_WORDS.items():
        assert len(stop_words) >= 20 or language == "unspaced"
        assert all(word == word.lower() for word in stop_words)
    assert {"the", "which"} <= languages.STOP_WORDS["english"]
    assert {"der", "welche"} <= languages.STOP_WORDS["german"]
