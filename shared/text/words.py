"""Words, parts of words and exact terms by which documents and questions are matched.

Documents and questions go through the same functions. PostgreSQL's parser gets only lower-case words between spaces, so
that it behaves alike in every database locale. Left alone, it keeps "and/or" as one word, finds no word in Chinese, and
in the locale C takes “quotation marks” for letters and does not lower É.
"""

import re
import unicodedata

from shared.text.languages import stop_words

LONGEST_WORD = 128  # characters; a lexeme must be shorter than 2 KB
LONGEST_TERM = 256
LONGEST_TEXT = 60_000  # characters, far more than a chunk has; their lexemes fit into a tsvector, which holds 1 MB
QUESTION_WORDS = 200  # distinct: a pasted document must not make the question count thousands of words
EXACT = "="  # begins an exact term and no word

# Thai, Lao, Burmese, Khmer, Chinese and Japanese, written without spaces; Korean, whose particles stick to the word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u318f"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
)
# Marks (vowel signs, accents) belong to the word: `\w` leaves them out.
MARKS = "".join(chr(n) for n in range(0x300, 0xFE30) if unicodedata.category(chr(n))[0] == "M")
_WORD = re.compile(rf"[\w{MARKS}-]{{1,{LONGEST_WORD}}}")
# A hyphen between letters stays: PostgreSQL indexes such a word and its parts.
_HYPHEN = re.compile(r"-(?:(?<![^\W\d_]-)|(?![^\W\d_]))")
# Terms that PostgreSQL would split: at a sign, at a hyphen beside a digit, and 4e7ba91, into the number 4e7 and "ba91".
_APART = re.compile(r"[.+#/\\:@~%_]|-(?:(?<=[0-9]-)|(?=[0-9]))|^[0-9]+e[0-9]+[^\W0-9]")
_RUN = re.compile(rf"[{UNSPACED}]+")
_TERM = re.compile(rf"[\w{MARKS}.+#/\\:@~%-]+")
_SEGMENT = re.compile(r"[/\\@]|::?(?!:)")
_PHONE = re.compile(r"(?:\+|\(0|0)(?<![\w.].)[0-9 ()/.-]{5,20}[0-9](?!\w)")
_SIGN = re.compile("[™℠¼-¾⅐-⅞]")  # NFKC would make Cloud™ a word "CloudTM" and of 6½ the number 61
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")  # characters inside words, such as the soft hyphen
_DASH = re.compile("[\u2010-\u2013\u2212]")


def words(text: str) -> list[str]:
    """Return the words of a text in order, lower-case.

    The parts of getUserById follow the word; a run of Chinese is returned as its bigrams.
    """
    text = _normalise(text)
    if not text.isascii():
        text = _RUN.sub(_bigrams, text)
    matches = _WORD.findall(_HYPHEN.sub(" ", text.replace("_", " ")))
    parts = {word: f"{word} {' '.join(split)}".lower() for word in set(matches) if (split := _camel_parts(word))}
    if parts:
        matches = [parts.get(word, word) for word in matches]
    return " ".join(matches).lower().split()


def _normalise(text: str) -> str:
    text = text[:LONGEST_TEXT]
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", _SIGN.sub(" ", text))[:LONGEST_TEXT]
    return _DASH.sub("-", _INVISIBLE.sub("", text)).replace("İ", "i")  # its lower() would be an i and a dot above


def _bigrams(run: re.Match[str]) -> str:
    text = run[0]
    return f" {' '.join(map(str.__add__, text, text[1:])) or text} "


def _camel_parts(word: str) -> list[str]:
    """Split HTTPServer into its parts; [] for a word without a capital letter after a small one."""
    if word.islower() or word.removesuffix("s").isupper() or word[1:].islower() or not word.isascii():
        return []
    parts = re.sub(r"([A-Z]+)([A-Z][a-z])|([a-z0-9])(?=[A-Z])", r"\1\3 \2", word).split()
    return parts if len(parts) > 1 else []


def searchable(text: str) -> str:
    """Return the words of a text between spaces, as to_tsvector gets them."""
    return " ".join(words(text))


def exact(text: str) -> list[str]:
    """Return the terms to match literally, each once, in order, after "=": "=err_conn_reset", "=c++", "=os.path.join".

    A path, URL or e-mail address also gives its parts, a telephone number its digits. Plain words are left to `words`.
    """
    text = _normalise(text).lower()
    terms: dict[str, None] = {}
    for run in dict.fromkeys(_TERM.findall(text)):
        if not _APART.search(run):
            continue
        path = run.partition("://")[2] or run
        for term in (path, *_SEGMENT.split(path)):
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
    """Return a question's words and exact terms, each once, without its language's stop words, and at most 200 of each.

    Stop words are left out because they are rare, and so weigh much, in documents of other languages. A longer question
    keeps its first and its last words: the question stands before or after the text that was pasted.
    """
    every = words(text)
    common = stop_words(text, every)
    content_words = [word for word in every if not common.issuperset(word.split("-"))]
    return _ends(list(dict.fromkeys(content_words or every))), _ends(exact(text))


def _ends(terms: list[str]) -> list[str]:
    half = QUESTION_WORDS // 2
    return terms if len(terms) <= QUESTION_WORDS else terms[:half] + terms[-half:]
