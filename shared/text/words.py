"""The words by which documents and questions are matched: a document's language, words, parts of words, exact terms.

Documents and questions go through the same functions. PostgreSQL's parser sees only lower-case words between spaces, so that
it does the same in every database locale: left alone, it keeps "and/or" whole, finds no word in Chinese, and in the locale C
takes “quotation marks” for letters and leaves É as it is.
"""

import re
import unicodedata
from bisect import bisect
from collections import Counter, defaultdict
from math import log2, sqrt

LONGEST_WORD = 128  # characters; a lexeme must be shorter than 2 KB
LONGEST_TERM = 256
LONGEST_TEXT = 60_000  # characters, far more than a chunk has: what they make fits into a tsvector, which holds 1 MB
QUESTION_WORDS = 200  # distinct: a pasted document must not make the question count thousands of words
EXACT = "="  # begins an exact term and no word

# The commonest words of a language, and those that questions begin with: they tell the language, and are left out of questions.
# PostgreSQL has a stemmer, which is its text search configuration, for those before the line; Croatian and Bosnian go with Serbian.
_COMMON = {
    "arabic": "في من على إلى الى أن ان التي الذي عن مع هذا هذه ذلك كان كانت ما لا لم لن أو او ثم بين بعد قبل قد كل هو هي و بي غير حتى إذا اذا ماذا متى أين كيف كم لماذا هل مما حيث عند لقد",
    "armenian": "և է են որ ի մեջ այս այդ համար հետ էր էին եւ ու իր ոչ բայց նաև մի թե ինչ ով երբ որտեղ ինչպես քանի որը որոնք կամ",
    "basque": "eta da du ez bat dira zen den izan dute ere baina edo zuen beste baino egin bere hau hori dago duen egon ziren bezala gabe arte zer nor non noiz nola zenbat zein dituzte",
    "catalan": "el la els les de del dels i a en un una per que amb no és són al als es més ha han va com o però seu seva aquest aquesta aquests també entre fins on quan què qui quin quina quants quantes ser estat sobre sense perquè molt pel si",
    "danish": "og i at det er en til af på for de med som der den ikke et han var har om fra kan vil blev ved også efter men hvor skal eller hvad hvem hvilken hvilket hvornår hvordan hvorfor sig nogen meget mange være havde blive bliver jeg du vi hun dem mig dig noget kun når end over så denne dette",
    "dutch": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij uit door naar over werd wordt worden hij ze zij was deze dit die of heeft hebben kan meer nog wel wat wie waar wanneer hoe welke waarom veel hoeveel geen tot je ik we u had zou moet na tussen onder",
    "english": "the of and to a in is that it for was on with as are by be this at from or an which not have has had were their they you your we our his her he she its but what who whom whose when where why how can could will would should does did do been there than if into many much these those some any all about them only also no me my i more other one most such myself ours ourselves yours yourself yourselves him himself hers herself itself theirs themselves am being having doing because until while against between through during before after above below up down out off over under again further then once here both each few nor own same so too very s t just don now ll ve re d",
    "finnish": "ja on ei että se oli ovat hän mutta myös kun joka mukaan sen tai jos kuin vain olla ole niin ollut sekä hänen tämä tässä ne nämä jotka mitä mikä kuka missä milloin miten miksi kuinka monta koska kanssa jälkeen sitä minä sinä me te voi vuonna eivät olivat mihin",
    "french": "le la les de des du et en un une est que qui dans pour par sur pas plus au aux ce cette ces il elle ils ne se sont avec ou son sa ses leur leurs mais nous vous je on été être a ont était comme tout fait où quand comment quel quelle quels quelles combien pourquoi quoi d l qu c s n y entre aussi même sans après si très",
    "german": "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine einen einem einer als auch es an er hat aus bei nach wird sind war wurde werden oder wie um zum zur über einer durch am wenn nur noch vor bis kann man sie ich wir ihr dass daß aber so haben was wer wo wann warum welche welcher welches wieviel viele viel wem wen keine kein mehr unter diese dieser dieses vom beim seit ihre seine zwischen gegen ab",
    "greek": "και το του της η ο από την να με των που για τα τη οι είναι σε τον στην στο ότι τους μια μία στη ένα τις ως ήταν ή δεν κατά στα στις στον έχει θα όπως αν αλλά αυτό τι ποιος ποια ποιο ποιοι ποιες πότε πού πώς πόσο πόσα πόσοι πόσες γιατί ποιον ποιων μας σας",
    "hindi": "के में और की को से का एक ने लिए पर है कि रूप जो हैं यह भी द्वारा था थे थी साथ या कर नहीं इस अपने हो ही क्या कौन कब कहाँ कहां कैसे कितने कितना कितनी क्यों किस किसने जब तो वह ये उस किया गया हुआ",
    "hungarian": "a az és hogy nem is egy van volt ez meg már csak de ha el még mint azt sem vagy minden ki kell lehet pedig több után amely volna ami aki amelyek mi mit hol mikor hogyan miért hány melyik mennyi voltak ezt által között szerint",
    "indonesian": "yang dan di dari untuk dengan pada ini itu dalam adalah tidak akan ke oleh juga sebagai karena atau ada bisa telah dapat saya mereka lebih oleh para tersebut bahwa kami kita sudah apa siapa kapan dimana mana bagaimana berapa mengapa kenapa seperti jika anda",
    "irish": "agus an na ar is i le go ag ní bhí tá do sé sa a bhfuil de seo sin ach nó mar ó bhí siad sí cad cé cén conas cathain cá faoi aige leis chun",
    "italian": "di e il la che in un una per è non del della dei delle degli con da sono al alla si le i lo gli come più anche ma nel nella dal dalla sul sulla questo questa o se ha hanno era stato essere ed ad suo sua chi cosa quando dove quale quali quanto quanti quante perché ci fu l dell all un'altra tra fra molto dopo",
    "lithuanian": "ir yra kad į iš su buvo tai ne bet kaip o jo ar už po apie tik taip dėl nuo iki kuris kuri jų jos šis ši savo buvo kas ką kada kur kodėl kiek kuo jau dar prie",
    "nepali": "छ र को मा का ले लाई हो पनि भने गर्न यो त्यो थियो छन् एक गरेको भएको तथा हुन्छ तर छैन कि कुन कसरी कति कहिले किन के गर्ने उनले",
    "norwegian": "og i det er en til av på for de med som den ikke et han var har om fra kan vil ble ved også etter men hvor skal eller hva hvem hvilken hvilket når hvordan hvorfor seg noen mye mange være hadde bli blir jeg du vi hun dem meg deg noe bare enn over så denne dette ei at der",
    "portuguese": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo aos ter seus quem nas esse esta são onde qual quais quantos quantas quanto porque foram num numa você",
    "romanian": "de în și şi a din la cu care pentru mai o un să au este pe se fost că al nu ale sau lui ce sunt iar fi dintre ca prin după cele cel între ar s-a era unei unui sub ei cine când unde cum cât câți câte câţi cui ai ale lor dar această acest n-a își îl i",
    "russian": "и в не на что с он как это по но они мы она к из у за так же от бы для о или то был была было были его её ее их все при уже если до есть только еще ещё чем который которая которые которого также кто когда где почему сколько какой какая какие каково какова какое какую каким чего этого том во со ли я вы",
    "serbian": "је и у да се на су за од са не као што би или али који која које из до по ће није био била биле били kako je i u da se na su za od sa ne kao što će ili ali koji koja koje iz do po bi nije bio bila ovo ovaj kao ima biti šta sta ko tko kada gde gdje zašto koliko što također takođe nakon kod jer samo",
    "spanish": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante es son fue era ser ha han está están qué cuál cuáles cuándo dónde quién quiénes cómo cuánto cuántos cuántas cuánta fueron había puede",
    "swedish": "och i att det är en som på för av med den till inte om ett han men var jag sig från vi så kan när år de har hade ska eller också efter vid blev där mot här över under vad vem vilken vilket vilka hur varför många mycket ut ur utan mer nu alla varit vara blir detta denna hon du upp några",
    "tamil": "மற்றும் ஒரு இந்த என்று அந்த என்ற உள்ள அது இது ஆகும் போது அவர் என எந்த யார் எப்போது எங்கே எப்படி ஏன் எத்தனை என்ன",
    "turkish": "ve bir bu da de için ile olarak çok daha ne gibi en olan var kadar sonra ancak veya ya mi mı mu mü o değil ki her ama şey diye ben sen biz siz olduğu olduğunu tarafından kim nasıl neden nerede kaç hangi zaman hangisi nedir nelerdir kimdir ise göre",
    "yiddish": "און די דער איז אין פון צו דאָס מיט פֿון אַ אױף אויף ניט נישט האָט זיך װאָס וואָס אים ער זי עס װי ווי זײַן",
    # ---- those for which it has none: 'simple'
    "albanian": "dhe të në një për me që është nga si e i u ka së nuk më do kjo ky janë ishte por ose shumë çfarë kush kur ku pse",
    "bulgarian": "на и за да се от в е са не с по че като до които който която което със но си при или след беше най бъде има също така той тя как какво кога къде кой колко защо през може",
    "czech": "a se v na je že s z do o to i ve pro jako za by jsou ale po které který která byl byla bylo jeho jak nebo podle od při mezi také již než co kdo kdy kde proč kolik jaký jaká jaké být není aby si však jsem",
    "estonian": "ja on ei et see oli ka kui aga mis või oma selle ta ning nii siis tema seda olid veel kes kus millal miks kuidas mitu mida pärast kõik nende poolt",
    "hebrew": "את של על לא הוא היא זה גם עם אל כי או אבל אם מה מי איך מתי איפה למה כמה יש היה אני",
    "icelandic": "og að er í á sem var við til um með af en það ekki hann fyrir frá þetta hún eru hefur þegar voru eða hvað hver hvar hvenær hvernig",
    "latvian": "un ir no ar par kas uz lai bet arī kā tika vai to pēc bija tas šo pie ko kad kur kāpēc cik kurš kura gan savu viņš viņa nav",
    "marathi": "आहे आणि या व च्या ते की तो हा ही हे होते होता करून आहेत नाही म्हणून काय कोण कधी कुठे कसे किती का त्या झाली झाला असे",
    "persian": "و در به از که این را با است آن برای یک می تا بود شد خود بر یا های هم کرد اما شده چه کی کجا چرا چگونه چند نیز باید ها",
    "polish": "i w na z się nie do że o to jest za od po jak jego oraz ale przez dla są był była było tym który która które także lub ze co kto kiedy gdzie dlaczego ile jaki jaka jakie być tego może przed więc nad jako czy został a",
    "slovak": "a sa v na je že s z do o to aj vo pre ako za by sú ale po ktoré ktorý ktorá bol bola bolo jeho alebo podľa od pri medzi tiež už než čo kto kedy kde prečo koľko aký aká aké byť nie aby si však som",
    "slovene": "in je v na se da za ki so z ne s pa bi tudi kot po od ali do iz pri je bil bila bilo lahko ter še ni kaj kdo kdaj kje zakaj kako koliko katera kateri katere med vse zelo sem",
    "ukrainian": "і в на не що з та у до як за це від є для про його було був була були й або але чи який яка які також він вона вони при після може хто коли де чому скільки",
    "urdu": "کے میں اور کی کو سے کا ہے نے پر کہ یہ ایک ہیں اس تھا لیے بھی جو کر ہو نہیں تھے کیا کون کب کہاں کیسے کتنے کیوں",
    "vietnamese": "và của các là được trong một có đã với người cho vào ở không thành từ những để về này khi như đó ra theo cũng bị đến tại gì ai nào đâu bao nhiêu mấy sao thế tên hay hoặc do nhiều sau trên",
}
_CONFIGURATIONS = frozenset(list(_COMMON)[: list(_COMMON).index("albanian")])
STOP_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
# What a word tells: the rank in its list says how common it is (Zipf); one of many languages tells less. Ties go to the languages
# that are written most. These figures did best on XQuAD's paragraphs and on 60 characters of them (98 % right), and on code.
_OFTEN = ("english", "german", "spanish", "french")
_SELDOM = "albanian basque catalan estonian icelandic irish latvian lithuanian slovak slovene".split()
_TELLS: dict[str, list[tuple[str, float]]] = defaultdict(list)
for _language, _words in _COMMON.items():
    for _rank, _word in enumerate(dict.fromkeys(_words.split())):
        _weight = 1.1 if _language in _OFTEN else 0.8 if _language in _SELDOM else 1.0
        _weight *= 0.5 if len(_word) == 1 and _word.isascii() else 1.0  # in code they are variables
        _TELLS[_word].append((_language, _weight / log2(2 + _rank / 10)))
_TELLS = {word: [(name, weight / sqrt(len(told))) for name, weight in told] for word, told in _TELLS.items()}

# Letters that few languages have.
_LETTERS: dict[str, tuple[str, ...]] = {}
for _language, _letters in {
    "german": "ß",
    "spanish": "ñ¿",
    "hungarian": "őű",
    "turkish": "ğış",
    "polish": "łśźżćńąę",
    "czech": "řěů",
    "slovak": "ľĺŕô",
    "romanian": "țșăţ",
    "vietnamese": "ơưạảấầậắặẹẻếềểệịỉọỏốồổộớờởợụủứừửữựỳỹ",
    "portuguese": "ãõ",
    "estonian": "õ",
    "danish": "øæ",
    "norwegian": "øæ",
    "lithuanian": "ėųįąę",
    "latvian": "ļķņģāēī",
    "icelandic": "þðæ",
    "serbian": "љњћђџјćđ",
    "ukrainian": "іїєґ",
    "persian": "پچژگکی",
    "urdu": "ٹڈےھںہ",
    "russian": "ыэ",
    "bulgarian": "ъ",
    "slovene": "",
    "albanian": "ë",
    "catalan": "ŀ",
}.items():
    for _letter in _letters:
        _LETTERS[_letter] = (*_LETTERS.get(_letter, ()), _language)

# Where a script begins, and the language that is likeliest in it; "" is Latin, which tells nothing.
_SCRIPTS = (
    (0, ""),
    (0x370, "greek"),
    (0x400, "russian"),
    (0x530, "armenian"),
    (0x590, "hebrew"),
    (0x600, "arabic"),
    (0x700, "other"),
    (0x750, "arabic"),
    (0x780, "other"),
    (0x900, "hindi"),
    (0x980, "other"),
    (0xB80, "tamil"),
    (0xC00, "other"),
    (0xE00, "unspaced"),
    (0xF00, "other"),
    (0x1000, "unspaced"),
    (0x10A0, "other"),
    (0x1100, "unspaced"),
    (0x1200, "other"),
    (0x1780, "unspaced"),
    (0x1800, "other"),
    (0x1E00, ""),
    (0x1F00, "greek"),
    (0x2000, ""),
    (0x2E80, "unspaced"),
    (0xA000, "other"),
    (0xAC00, "unspaced"),
    (0xD7B0, "other"),
    (0xF900, "unspaced"),
    (0xFB00, "other"),
    (0xFB50, "arabic"),
    (0xFE30, "unspaced"),
    (0x10000, "other"),
    (0x1F000, ""),
    (0x20000, "unspaced"),
    (0x32000, "other"),
)
_STARTS = [start for start, _ in _SCRIPTS]

# Written without spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese) or with particles that stick to the word (Korean).
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
# Marks (vowel signs, accents) belong to the word: `\w` leaves them out.
MARKS = "".join(chr(n) for n in range(0x300, 0xFE30) if unicodedata.category(chr(n))[0] == "M")
_WORD = re.compile(rf"[\w{MARKS}-]{{1,{LONGEST_WORD}}}")
# A hyphen between letters stays: of those PostgreSQL indexes whole and parts.
_HYPHEN = re.compile(r"-(?:(?<![^\W\d_]-)|(?![^\W\d_]))")
# What is taken apart: at a sign, at a hyphen beside a digit, and 4e7ba91, which PostgreSQL takes for the number 4e7 and "ba91".
_APART = re.compile(r"[.+#/\\:@~%_]|-(?:(?<=[0-9]-)|(?=[0-9]))|^[0-9]+e[0-9]+[^\W0-9]")
_RUN = re.compile(rf"[{UNSPACED}]+")
_TERM = re.compile(rf"[\w{MARKS}.+#/\\:@~%-]+")
_SEGMENT = re.compile(r"[/\\@]|::?(?!:)")
_PHONE = re.compile(r"(?:\+|\(0|0)(?<![\w.].)[0-9 ()/.-]{5,20}[0-9](?!\w)")
_SIGN = re.compile("[™℠¼-¾⅐-⅞]")  # NFKC would make Cloud™ a word "CloudTM" and of 6½ the number 61
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # the soft hyphen and the like stand inside words
_DASH = re.compile("[\u2010-\u2013\u2212]")


def language(text: str) -> str | None:
    """The language of a text, from at most 4,000 characters spread over it; None where nothing tells it."""
    if len(text) > 4000:
        text = " ".join(text[i * (len(text) - 500) // 7 :][:500] for i in range(8))
    words = _WORD.findall(text.lower())
    scores: dict[str, float] = defaultdict(float)
    for word, count in Counter(words).items():
        if script := _SCRIPTS[bisect(_STARTS, ord(word[0])) - 1][1]:
            scores[script] += count * (len(word) / 2 if script == "unspaced" else 0.2)
        for name, weight in _TELLS.get(word, ()):
            scores[name] += count * weight
        if not word.isascii():
            for name in {name for letter in word for name in _LETTERS.get(letter, ())}:
                scores[name] += count
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best and scores[best] >= max(0.3, 0.05 * len(words)) else None


def configuration(text: str, default: str = "english") -> str:
    """The text search configuration that fits a document, one that PostgreSQL 15 has; 'simple' where it has no stemmer.

    `default`: where nothing tells the language (code, tables), and for scripts without spaces, whose bigrams no stemmer
    changes and whose Latin words are mostly English.
    """
    found = language(text)
    if found is None or found == "unspaced":
        return default
    return found if found in _CONFIGURATIONS else "simple"


def words(text: str) -> list[str]:
    """The words of a text in its order, lower-case, those of getUserById or HTTP_Server after the whole; of a run of Chinese the bigrams."""
    text = _plain(text)
    if not text.isascii():
        text = _RUN.sub(_bigrams, text)
    found = _WORD.findall(_HYPHEN.sub(" ", text.replace("_", " ")))
    parts = {word: f"{word} {' '.join(split)}".lower() for word in set(found) if (split := _camel(word))}
    if parts:
        found = [parts.get(word, word) for word in found]
    return " ".join(found).lower().split()


def _plain(text: str) -> str:
    text = text[:LONGEST_TEXT]
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", _SIGN.sub(" ", text))[:LONGEST_TEXT]
    return _DASH.sub("-", _INVISIBLE.sub("", text)).replace("İ", "i")  # whose small letter is an i and a dot above


def _bigrams(run: re.Match[str]) -> str:
    text = run[0]
    return f" {' '.join(map(str.__add__, text, text[1:])) or text} "


def _camel(word: str) -> list[str]:
    """The parts of HTTPServer; none of a word that has no capital letter after a small one."""
    if word.islower() or word.removesuffix("s").isupper() or word[1:].islower() or not word.isascii():
        return []
    parts = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z0-9])(?=[A-Z])", r"\1\3 \2", word).split()
    return parts if len(parts) > 1 else []


def searchable(text: str) -> str:
    """What to_tsvector shall see of a text: words between spaces."""
    return " ".join(words(text))


def exact(text: str) -> list[str]:
    """Terms that are searched for literally, each once, in their order, "=" before it: "=err_conn_reset", "=c++", "=os.path.join".

    Of a path, URL or e-mail address the parts too; of a telephone number its digits. What is one plain word is left to `words`.
    """
    text = _plain(text).lower()
    terms: dict[str, None] = {}
    for run in dict.fromkeys(_TERM.findall(text)):
        if not _APART.search(run):
            continue
        whole = run.partition("://")[2] or run
        for term in (whole, *_SEGMENT.split(whole)):
            term = term.lstrip("+#/\\:@~%-_").rstrip("./\\:@~%-_")
            if term.startswith("..") or not term[:2].strip(".").isalpha():
                term = term.lstrip(".")
            if len(term) <= LONGEST_TERM and _APART.search(term) and any(map(str.isalnum, term)):
                terms[EXACT + term] = None
    for phone in _PHONE.findall(text):
        digits = "".join(filter(str.isdigit, phone))
        if 7 <= len(digits) <= 15:
            terms[EXACT + digits] = None
    return list(terms)


def question(text: str) -> tuple[list[str], list[str]]:
    """A question's words and exact terms, each once: without the commonest words of its language, and at most 200 of each.

    The commonest words of the question's language are rare, and so weighty, where other languages are written. Of a longer
    question the first and the last count: what is asked stands before or after what was pasted.
    """
    found = words(text)
    common = STOP_WORDS.get(language(text) or "", frozenset())
    telling = [word for word in found if not common.issuperset(word.split("-"))]
    return _ends(list(dict.fromkeys(telling or found))), _ends(exact(text))


def _ends(terms: list[str]) -> list[str]:
    half = QUESTION_WORDS // 2
    return terms if len(terms) <= QUESTION_WORDS else terms[:half] + terms[-half:]
